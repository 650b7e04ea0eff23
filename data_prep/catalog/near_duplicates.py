"""Near-duplicates: photos that are copies of one picture although their bytes differ.

A hash of the coarse structure finds candidates in n log n; the pixels of each candidate pair decide.
The hash alone cannot decide: portraits of different people in one studio are as close as copies
that were cropped.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.catalog.images import MAX_BYTES, RGB, PhotoError, decode
from data_prep.errors import require_machine
from data_prep.roots import places

Pairs = NDArray[np.int64]  # (n, 2) positions, the smaller one first
_SIDE = 64  # pixels of the grey thumbnail
_LOW = 16  # rows and columns of the cosine transform that make the hash: 256 bits
_COARSE = 8  # of them, those whose bits survive a crop best; they choose candidates
_TRIM = 0.02  # of each side: the second hash, of the inner photo, meets the hash of a copy cropped by up to 3 %
_FLAT = 2.0  # standard deviation of grey values (0 to 255); below it there is no structure
_WORDS = _LOW * _LOW // 64
_N_BANDS = 24
_WINDOW = 12  # neighbours in a band that are compared; copies of one picture are neighbours
_CHUNK = 1024  # hashes at a time: text of all of them would take fresh memory, which is slow
_FAR = 64
"""Bits of 256.

Copies that are re-encoded or cropped by 3 % differ in up to 32 bits (cropped on one side only: 60).
Nine in ten thousand pairs of other portraits differ in fewer than 64 (drawn ones: 5 in a thousand),
so the pixels decide.
"""
_STRETCH = 0.15  # of the side: how far a copy may be stretched, sheared or moved
SAME = 0.99
"""Correlation after registration from which two photos are one picture.

Copies reached 0.997 and more, also at JPEG quality 30 with 5 % cut off. The nearest photos of
different people reached 0.969 (15 drawn, 26 real people).
"""
_PLAIN = 12.0  # levels of 255 that a plain background varies by
_MUCH_PLAIN = 0.3  # of a photo
_OTHER_COLOUR = 24.0  # levels by which a pixel is of another colour
_MOST_OTHER = 0.3
"""Share of a subject's pixels of another colour from which it is another one.

Masks of two colours drawn on one portrait cover less of it.
"""


def perceptual_hash(pixels: RGB) -> str | None:
    """Hash the coarse structure of a photo and of its inner 96 %.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions",
    section 3.2.1, with signs instead of comparisons with the median. Mirroring a photo negates its
    odd columns, so the hash of a mirrored photo follows from this one.

    Args:
        pixels: (H, W, 3) uint8.

    Returns:
        128 hex digits: the signs of the 16 x 16 lowest cosine frequencies of both. None for a photo
        without structure.
    """
    from scipy.fft import dctn  # noqa: PLC0415 - 0.1 s, and planning imports this module's neighbours

    whole = thumbnail(pixels)
    if whole.std() < _FLAT:
        return None
    height, width = pixels.shape[:2]
    top = round(height * _TRIM)
    left = round(width * _TRIM)
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

    Locality-sensitive hashing (Indyk and Motwani 1998): each of 24 orders sorts the entries by
    log2(n) of their coarse bits and compares neighbours with equal bits only, at most 12 each. The
    cost is n log n for all photos.

    Args:
        hashes: of `perceptual_hash`.
        far: largest number of differing bits, of 256.

    Returns:
        Pairs, and the bits in which each differs, closest first.
    """
    known = [index for index, text in enumerate(hashes) if text is not None]
    if len(known) < 2:
        return np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.int64)
    entries = _entries([hashes[index] or "" for index in known])
    # the order of all coarse bits serves the cache, and keeps equal hashes together in long runs
    order = np.argsort(_numbers(entries.T, _coarse_bits()), kind="stable")
    entries = entries.take(order, axis=0)
    owners = np.tile(np.array(known, dtype=np.int64), 3)[order]
    columns = np.ascontiguousarray(entries.T)
    words = entries.view(np.uint64)
    keys = np.empty(0, dtype=np.int64)
    gaps = np.empty(0, dtype=np.int64)
    n = len(hashes)
    for bits in _choices(len(entries)):
        new_keys, new_gaps = _neighbours(_numbers(columns, bits), words, owners, n, far)
        keys, gaps = _closest(np.concatenate([keys, new_keys]), np.concatenate([gaps, new_gaps]))
    order = np.lexsort((keys, gaps))
    return np.stack([keys[order] // n, keys[order] % n], axis=1), gaps[order]


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
        entries[start:stop] = whole
        entries[n + start : n + stop] = inner
        entries[2 * n + start : 2 * n + stop] = whole ^ _mirror()
    return entries


def _choices(n: int) -> Iterator[NDArray[np.int64]]:
    """Choose the bits of every band for n entries, in the order in which they count in `_coarse_bits` too."""
    rng = np.random.default_rng(0)
    coarse = _coarse_bits()
    width = min(max(n.bit_length(), 8), 30)
    for _ in range(_N_BANDS):
        yield np.sort(coarse[rng.permutation(len(coarse))[:width]])


def _numbers(columns: NDArray[np.uint8], bits: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Read some bits of entries (32 bytes, m) as numbers (m,); the first bit counts most.

    A table translates a byte at a time.
    """
    values = np.zeros((len(columns), 8), dtype=np.uint64)
    values.flat[bits] = np.uint64(1) << np.arange(len(bits), dtype=np.uint64)[::-1]
    of_byte = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.uint64)
    numbers = np.zeros(columns.shape[1], dtype=np.uint64)
    for byte in np.unique(bits // 8):
        numbers += (of_byte @ values[byte]).take(columns[byte])
    return numbers


def _neighbours(
    band: NDArray[np.uint64], words: NDArray[np.uint64], owners: NDArray[np.int64], n: int, far: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compare entries with equal band that are close in the order.

    Args:
        band: (m,) of each entry, below 2^30; overwritten.
        words: (m, 4) the entries.
        owners: (m,) whose entry it is.
        n: of owners.
        far: largest number of differing bits.

    Returns:
        Pairs of owners as one number each, and their differing bits.
    """
    # band and place in one number: sorting numbers takes a tenth of sorting their places
    place_bits = np.uint64(len(band).bit_length())
    band <<= place_bits
    band |= np.arange(len(band), dtype=np.uint64)
    band.sort()
    place = (band & ((np.uint64(1) << place_bits) - np.uint64(1))).view(np.int64)
    band >>= place_bits
    same = np.flatnonzero(band[1:] == band[:-1])
    keys = []
    gaps = []
    for step in range(1, _WINDOW + 1):
        if step > 1:  # an entry without an equal at one distance has none further away
            same = same[: np.searchsorted(same, len(band) - step)]
            same = same[band.take(same + step) == band.take(same)]
        left = place.take(same)
        right = place.take(same + step)
        bits = np.bitwise_count(words.take(left, axis=0) ^ words.take(right, axis=0))
        gap = bits[:, 0].astype(np.int64)  # numpy's sum of rows of four takes three times as long
        for word in range(1, _WORDS):
            gap += bits[:, word]
        near = np.flatnonzero(gap <= far)
        first = owners[left[near]]
        second = owners[right[near]]
        is_pair = first != second
        key = np.minimum(first, second) * n + np.maximum(first, second)
        keys.append(key[is_pair])
        gaps.append(gap[near[is_pair]])
    return np.concatenate(keys), np.concatenate(gaps)


def _closest(
    keys: NDArray[np.int64], gaps: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep every pair once, with the fewest bits it was found by."""
    order = np.lexsort((gaps, keys))
    keys = keys[order]
    gaps = gaps[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    return keys[first], gaps[first]


def same_picture(first: RGB, second: RGB) -> bool:
    """Return True if two photos show one picture.

    They do if they correlate after an affine registration, as they are or one of them mirrored. Of
    subjects before a plain background the colours must agree too: any two of them correlate,
    because the background is most of both. Source: Evangelidis and Psarakis 2008, "Parametric
    image alignment using enhanced correlation coefficient".
    """
    mirrored = np.ascontiguousarray(second[:, ::-1])
    return any(_is_registered(first, other) for other in (second, mirrored))


class _Registered(NamedTuple):
    """How one thumbnail lies on another."""

    correlation: float
    transform: NDArray[np.float32] | None  # None where no small affine map joins them


def _is_registered(first: RGB, second: RGB) -> bool:
    registered = _register(thumbnail(first), thumbnail(second))
    if registered.correlation < SAME or registered.transform is None:
        return False
    return not _differ_in_colour(first, second, registered.transform)


def _differ_in_colour(first: RGB, second: RGB, transform: NDArray[np.float32]) -> bool:
    """Return True if both have a plain background, and another one or another subject before it."""
    import cv2  # noqa: PLC0415

    small = []
    for pixels in (first, second):
        rgb = pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        resized = cv2.resize(rgb, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        small.append(cv2.GaussianBlur(np.asarray(resized, np.float32), (0, 0), 1))
    backgrounds = [_plain_background(pixels) for pixels in small]
    left, right = backgrounds
    if left is None or right is None:
        return False
    if np.abs(left - right).max() > _OTHER_COLOUR:
        return True
    size = (_SIDE, _SIDE)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(small[1], transform, size, flags=flags, borderValue=right.tolist())
    is_subject = np.abs(small[0] - left).max(2) > _OTHER_COLOUR
    is_subject |= np.abs(warped - right).max(2) > _OTHER_COLOUR
    if not is_subject.any():
        return False
    differs = np.abs(small[0] - warped).max(2) > _OTHER_COLOUR
    return bool(differs[is_subject].mean() > _MOST_OTHER)


def _plain_background(pixels: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the colour of a plain background (3,), by the rim of a thumbnail; None without one."""
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(rim, axis=0)
    is_like_it = np.abs(pixels - colour).max(2) <= _PLAIN
    return colour if is_like_it.mean() >= _MUCH_PLAIN else None


def _register(left: NDArray[np.float32], right: NDArray[np.float32]) -> _Registered:
    """Correlate two thumbnails where both are known; 0 if no small affine map joins them."""
    import cv2  # noqa: PLC0415

    fixed = cv2.GaussianBlur(left, (0, 0), 1)
    moving = cv2.GaussianBlur(right, (0, 0), 1)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        _, transform = cv2.findTransformECC(
            fixed,
            moving,
            start.copy(),
            cv2.MOTION_AFFINE,
            stop,
            inputMask=None,
            gaussFiltSize=1,
        )
    except cv2.error:  # it did not converge: nothing in common
        return _Registered(0.0, None)
    stretch = np.abs(transform - start)[:, :2].max()
    shift = np.abs(transform[:, 2]).max() / _SIDE
    if max(stretch, shift) > _STRETCH:
        # everything correlates with a few pixels drawn large
        return _Registered(0.0, None)
    size = (_SIDE, _SIDE)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(moving, transform, size, flags=flags)
    known = np.full(size, 1, dtype=np.float32)
    # interpolated, so that a pixel mixed with the outside stays out: the rim alone cost 0.02
    inside = cv2.warpAffine(known, transform, size, flags=flags) > 1 - 1e-6
    correlation = float(np.corrcoef(fixed[inside], warped[inside])[0, 1])
    return _Registered(correlation, transform)


def compare_chunk(pairs: list[tuple[str, str]]) -> list[bool]:
    """Compare photos (two absolute paths each); those that cannot be read are not the same.

    Raises:
        MachineError: one could not be read, and that says nothing about the photo.
    """

    @functools.lru_cache(maxsize=32)
    def read(path: str) -> RGB | None:
        try:
            return decode(places.read(path, MAX_BYTES).data, near=2 * _SIDE)
        except PhotoError:
            return None
        except OSError as error:
            require_machine(error, path, os.path.dirname(path))  # noqa: PTH120 - as above
            return None

    def same(first: str, second: str) -> bool:
        left = read(first)
        right = read(second)
        return left is not None and right is not None and same_picture(left, right)

    return [same(first, second) for first, second in pairs]


def sets_of(pairs: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Join pairs that share a member.

    Yields:
        Sorted sets of two and more, the one with the smallest member first.
    """
    parent: dict[int, int] = {}

    def root(member: int) -> int:
        while (above := parent.setdefault(member, member)) != member:
            parent[member] = member = parent[above]
        return member

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    sets: dict[int, list[int]] = {}
    for member in sorted(parent):
        sets.setdefault(root(member), []).append(member)
    yield from sets.values()


@functools.cache
def _coarse_bits() -> NDArray[np.int64]:
    rows, columns = np.divmod(np.arange(_LOW * _LOW), _LOW)
    is_mean = rows + columns == 0
    return np.flatnonzero((rows < _COARSE) & (columns < _COARSE) & ~is_mean)


@functools.cache
def _mirror() -> NDArray[np.uint8]:
    return np.packbits(np.arange(_LOW * _LOW) % 2 == 1)
