"""Near-duplicates: photos that are copies of one picture although their bytes differ.

A hash of the coarse structure finds candidates in n log n; the pixels of each candidate pair decide. The hash alone
cannot: portraits of different people in one studio are as close as copies that were cropped.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.catalog.images import RGB, PhotoError, decode
from data_prep.errors import require_machine

Pairs = NDArray[np.int64]  # (n, 2) positions, the smaller one first
_SIDE = 64  # pixels of the grey thumbnail
_LOW = 16  # rows and columns of the cosine transform that make the hash: 256 bits
_COARSE = 8  # of them, those whose bits survive a crop best; they choose candidates
_TRIM = 0.02  # of each side: the second hash, of the inner photo, meets the hash of a copy cropped by up to 3 %
_FLAT = (
    2.0  # standard deviation of grey values, 0 to 255, below which there is no structure to compare
)
_WORDS = _LOW * _LOW // 64
_N_BANDS = 24
_WINDOW = (
    12  # neighbours in a band that are compared; copies of one picture stand beside each other
)
_CHUNK = 1024  # hashes at a time: text of all of them would take fresh memory, which costs more than reading it
_FAR = 64
"""Bits of 256. Copies re-encoded or cropped by 3 % differ in up to 32 (cropped on one side only: 60), nine in ten
thousand pairs of other portraits in fewer than 64 (drawn: 5 in a thousand), so that the pixels are asked last."""
_STRETCH = 0.15  # of the side: how far a copy may be stretched, sheared or moved
SAME = 0.99
"""Correlation after registration from which two photos are one picture: copies reached 0.997 and more, also at JPEG
quality 30 with 5 % cut off; the nearest photos of different people 0.969 (15 drawn, 26 real people)."""


def perceptual_hash(pixels: RGB) -> str | None:
    """Return 128 hex digits: the signs of the 16 x 16 lowest cosine frequencies of a photo and of its inner 96 %.

    Mirroring a photo negates its odd columns, so no second hash is needed for that. None where nothing is to be seen.
    The idea: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section 3.2.1; signs
    instead of comparisons with the median, so that a mirrored photo's hash follows from this one.

    Args:
        pixels: (H, W, 3) uint8.
    """
    from scipy.fft import dctn  # noqa: PLC0415 - 0.1 s, and planning imports this module's neighbours

    whole = thumbnail(pixels)
    if whole.std() < _FLAT:
        return None
    height, width = pixels.shape[:2]
    top, left = round(height * _TRIM), round(width * _TRIM)
    inner = thumbnail(pixels[top : height - top, left : width - left])
    signs = [dctn(grey, norm="ortho")[:_LOW, :_LOW].ravel() > 0 for grey in (whole, inner)]
    return np.packbits(np.concatenate(signs)).tobytes().hex()


def thumbnail(pixels: RGB) -> NDArray[np.float32]:
    """Shrink a photo to (64, 64) grey values, 0 to 255; its shape is not kept."""
    import cv2  # noqa: PLC0415

    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return np.asarray(
        cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), dtype=np.float32
    )


def candidates(hashes: Sequence[str | None], *, far: int = _FAR) -> tuple[Pairs, NDArray[np.int64]]:
    """Find pairs of hashes that differ in few bits, as they are or one of them mirrored.

    Locality-sensitive hashing (Indyk and Motwani 1998): in each of 24 orders the entries are sorted by log2(n) of their
    coarse bits, and only neighbours with equal ones are compared, at most 12 each: n log n, whatever the photos are.

    Args:
        hashes: of `perceptual_hash`.
        far: largest number of differing bits, of 256.

    Returns:
        Pairs, and the bits in which each differs, closest first.
    """
    known = [at for at, text in enumerate(hashes) if text is not None]
    if len(known) < 2:
        return np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.int64)
    entries = _entries([hashes[at] or "" for at in known])
    # in the order of all coarse bits: for the cache, and so that equal hashes stand together even in an endless run
    order = np.argsort(_numbers(entries.T, _coarse_bits()), kind="stable")
    entries, owners = (
        entries.take(order, axis=0),
        np.tile(np.array(known, dtype=np.int64), 3)[order],
    )
    columns, words = np.ascontiguousarray(entries.T), entries.view(np.uint64)
    found, closest = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    n = len(hashes)
    for bits in _choices(len(entries)):
        keys, gaps = _neighbours(_numbers(columns, bits), words, owners, n, far)
        found, closest = _closest(np.concatenate([found, keys]), np.concatenate([closest, gaps]))
    order = np.lexsort((found, closest))
    return np.stack([found[order] // n, found[order] % n], axis=1), closest[order]


def _entries(hashes: list[str]) -> NDArray[np.uint8]:
    """Return the bits of all photos, of their inner parts, and of the mirrored photos: (3n, 32)."""
    n = len(hashes)
    entries = np.empty((3 * n, _WORDS * 8), dtype=np.uint8)
    for start in range(0, n, _CHUNK):
        raw = bytes.fromhex("".join(hashes[start : start + _CHUNK]))
        whole, inner = (
            np.frombuffer(raw, dtype=np.uint8).reshape(-1, 2, _WORDS * 8).transpose(1, 0, 2)
        )
        stop = start + len(whole)
        entries[start:stop], entries[n + start : n + stop] = whole, inner
        entries[2 * n + start : 2 * n + stop] = whole ^ _mirror()
    return entries


def _choices(n: int) -> Iterator[NDArray[np.int64]]:
    """Choose the bits of every band for n entries, in the order in which they count in `_coarse_bits` too."""
    rng, coarse = np.random.default_rng(0), _coarse_bits()
    width = min(max(n.bit_length(), 8), 30)
    for _ in range(_N_BANDS):
        yield np.sort(coarse[rng.permutation(len(coarse))[:width]])


def _numbers(columns: NDArray[np.uint8], bits: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Read some bits of entries (32 bytes, m) as numbers (m,), the first bit counts most; a byte at a time, by a table."""
    values = np.zeros((len(columns), 8), dtype=np.uint64)
    values.flat[bits] = np.uint64(1) << np.arange(len(bits), dtype=np.uint64)[::-1]
    set_bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(
        np.uint64
    )  # of every byte
    numbers = np.zeros(columns.shape[1], dtype=np.uint64)
    for byte in np.unique(bits // 8):
        numbers += (set_bits @ values[byte]).take(columns[byte])
    return numbers


def _neighbours(
    band: NDArray[np.uint64], words: NDArray[np.uint64], owners: NDArray[np.int64], n: int, far: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compare entries with equal band and little between them: pairs as one number each, and their differing bits.

    Args:
        band: (m,) of each entry, below 2^30; overwritten.
        words: (m, 4) the entries.
        owners: (m,) whose entry it is.
        n: of owners.
        far: largest number of differing bits.
    """
    # band and place in one number: sorting numbers takes a tenth of sorting their places
    place_bits = np.uint64(len(band).bit_length())
    band <<= place_bits
    band |= np.arange(len(band), dtype=np.uint64)
    band.sort()
    place = (band & ((np.uint64(1) << place_bits) - np.uint64(1))).view(np.int64)
    band >>= place_bits
    same, keys, gaps = np.flatnonzero(band[1:] == band[:-1]), [], []
    for step in range(1, _WINDOW + 1):
        if step > 1:  # who has no equal at one distance has none further away
            same = same[: np.searchsorted(same, len(band) - step)]
            same = same[band.take(same + step) == band.take(same)]
        one, other = place.take(same), place.take(same + step)
        bits = np.bitwise_count(words.take(one, axis=0) ^ words.take(other, axis=0))
        gap = bits[:, 0].astype(np.int64)  # numpy's sum of rows of four takes three times as long
        for word in range(1, _WORDS):
            gap += bits[:, word]
        near = np.flatnonzero(gap <= far)
        first, second = owners[one[near]], owners[other[near]]
        near, first, second = (part[first != second] for part in (near, first, second))
        keys.append(np.minimum(first, second) * n + np.maximum(first, second))
        gaps.append(gap[near])
    return np.concatenate(keys), np.concatenate(gaps)


def _closest(
    keys: NDArray[np.int64], gaps: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep every pair once, with the fewest bits it was found by."""
    order = np.lexsort((gaps, keys))
    keys, gaps = keys[order], gaps[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    return keys[first], gaps[first]


def same_picture(first: RGB, second: RGB) -> bool:
    """Say whether two photos show one picture: registered by an affine map, mirrored or not, they correlate.

    Source: Evangelidis and Psarakis 2008, "Parametric image alignment using enhanced correlation coefficient".
    """
    one, other = thumbnail(first), thumbnail(second)
    return any(
        _correlation(one, side) >= SAME for side in (other, np.ascontiguousarray(other[:, ::-1]))
    )


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return how well two thumbnails agree where both are known, 0 if no small affine map lays one on the other."""
    import cv2  # noqa: PLC0415

    smooth = [cv2.GaussianBlur(grey, (0, 0), 1) for grey in (one, other)]
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        _, found = cv2.findTransformECC(
            smooth[0],
            smooth[1],
            start.copy(),
            cv2.MOTION_AFFINE,
            stop,
            inputMask=None,
            gaussFiltSize=1,
        )
    except cv2.error:  # it did not converge: nothing in common
        return 0.0
    if (
        np.abs(found - start)[:, :2].max() > _STRETCH
        or np.abs(found[:, 2]).max() > _STRETCH * _SIDE
    ):
        return 0.0  # anything correlates with a few pixels drawn large
    laid = cv2.warpAffine(
        smooth[1], found, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    known = np.full((_SIDE, _SIDE), 1, dtype=np.float32)
    # interpolated, so that a pixel mixed with the outside stays out: the rim alone cost 0.02
    inside = (
        cv2.warpAffine(known, found, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        > 1 - 1e-6
    )
    return float(np.corrcoef(smooth[0][inside], laid[inside])[0, 1])


def compare_chunk(pairs: list[tuple[str, str]]) -> list[bool]:
    """Compare photos (two absolute paths each); those that cannot be read are not the same.

    Raises:
        MachineError: one could not be read, and that says nothing about the photo.
    """

    @functools.lru_cache(maxsize=32)
    def read(path: str) -> RGB | None:
        try:
            with open(path, "rb") as handle:  # noqa: PTH123 - a plain string all the way
                return decode(handle.read(), near=2 * _SIDE)
        except PhotoError:
            return None
        except OSError as error:
            require_machine(error, path, os.path.dirname(path))  # noqa: PTH120 - as above
            return None

    def same(first: str, second: str) -> bool:
        one, other = read(first), read(second)
        return one is not None and other is not None and same_picture(one, other)

    return [same(first, second) for first, second in pairs]


def sets_of(pairs: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Join pairs that share a member: yield sorted sets of two and more, the one with the smallest member first."""
    parent: dict[int, int] = {}

    def root(at: int) -> int:
        while (above := parent.setdefault(at, at)) != at:
            parent[at] = at = parent[above]
        return at

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    found: dict[int, list[int]] = {}
    for at in sorted(parent):
        found.setdefault(root(at), []).append(at)
    yield from found.values()


@functools.cache
def _coarse_bits() -> NDArray[np.int64]:
    rows, columns = np.divmod(np.arange(_LOW * _LOW), _LOW)
    return np.flatnonzero(
        (rows < _COARSE) & (columns < _COARSE) & (rows + columns > 0)
    )  # not the mean


@functools.cache
def _mirror() -> NDArray[np.uint8]:
    return np.packbits(np.arange(_LOW * _LOW) % 2 == 1)
