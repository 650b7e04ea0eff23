"""Reading one photo: its hashes, its size, and whether it can be used."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
)

from data_prep.catalog.images import (
    ALLOWED,
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    PhotoError,
    decode,
    header_size,
)
from data_prep.catalog.near_duplicates import perceptual_hash
from data_prep.catalog.photo_paths import HEIF_REFUSAL, READS_HEIF
from data_prep.errors import require_machine
from data_prep.roots.places import Read, is_url, read_ahead

OK = "ok"
UNREADABLE = "unreadable"
_TOO_LARGE = re.compile(r"too large: ([0-9]+)x([0-9]+)")
_HEIF_REFUSED = re.compile(r"(refused|not allowed): (HEIC|\.hei[cf])")
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
_OTHERS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"SIMPLE": "FITS",
    b"%PDF": "PDF",
}


@dataclass(frozen=True)
class Facts:
    """What is known of a photo after reading it. `status` is "ok" or why it is quarantined."""

    sha256: str | None
    width: int | None  # pixels, upright
    height: int | None  # as the header states it, where the photo does not decode
    status: str
    phash: str | None = None  # of what is seen, null where that is nothing


def inspect_chunk(places: list[tuple[str, str]]) -> list[Facts]:
    """Read photos one after another; a broken one is a fact, not an error.

    Args:
        places: (absolute `images/` folder or its URL, POSIX path below it).
    """
    facts = []
    names = [f"{images}/{relative}" for images, relative in places]
    for (images, relative), read in zip(places, read_ahead(names, MAX_BYTES), strict=True):
        facts.append(_inspect_object(read) if is_url(images) else inspect(images, relative))
    return facts


def _inspect_object(read: Read) -> Facts:
    """Inspect a photo of a bucket, as `inspect` does a file."""
    try:
        content = read()
    except FileNotFoundError as error:  # deleted since it was listed
        return Facts(None, None, None, f"{UNREADABLE}: {error.strerror}")
    if content.size_bytes > MAX_BYTES:
        return Facts(None, None, None, f"too large: {content.size_bytes} bytes")
    return examine(content.data)


def inspect(images: str, relative: str) -> Facts:
    """Read a photo once, hash it, and decode it whole if its header allows it.

    The sizes that its file and its header state are checked first: a PNG of 410 kB can decode to 1.4 GB.

    Raises:
        MachineError: it could not be read, and that says nothing about the photo.
    """
    place = os.path.realpath(f"{images}/{relative}")
    if not place.startswith(os.path.realpath(images) + os.sep):
        return Facts(None, None, None, "refused: the link leads out of the data folder")
    try:
        facts = os.stat(place)  # noqa: PTH116 - see `open` below
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
            return Facts(None, None, None, "not a file")
        if facts.st_size > MAX_BYTES:
            return Facts(None, None, None, f"too large: {facts.st_size} bytes")
        with open(place, "rb") as handle:  # noqa: PTH123 - 100,000 Paths cost seconds
            photo = handle.read(MAX_BYTES + 1)
    except OSError as error:
        require_machine(error, place, images)
        return Facts(None, None, None, f"{UNREADABLE}: {error.strerror}")
    return examine(photo)


def may_be_read_now(status: str) -> bool:
    """Return True if a photo was left out for a reason that may have gone.

    That is missing rights, a limit, or a library that was not installed.
    """
    size = _TOO_LARGE.match(status)
    is_small_enough = size is not None and int(size[1]) * int(size[2]) <= MAX_PIXELS
    has_library = READS_HEIF and _HEIF_REFUSED.match(status) is not None
    return is_small_enough or has_library or status.startswith(UNREADABLE)


def examine(photo: bytes) -> Facts:
    """Hash and decode the bytes of a photo."""
    sha256 = hashlib.sha256(photo).hexdigest()
    kind = format_of(photo)
    if kind not in FORMATS:
        return Facts(sha256, None, None, _refusal(photo, kind))
    broken = "truncated" if _is_cut(photo, kind) else "broken"
    try:
        width, height = _header(photo, kind)
    except Exception:  # noqa: BLE001 - damaged headers raise a dozen kinds of errors
        return Facts(sha256, None, None, broken)
    if width * height > MAX_PIXELS:
        return Facts(sha256, width, height, f"too large: {width}x{height}")
    try:
        pixels = decode(photo)  # upright, as preparation will see it
    except PhotoError:
        return Facts(sha256, width, height, broken)
    except Exception:  # noqa: BLE001 - as above
        return Facts(sha256, width, height, "broken")
    height, width = pixels.shape[:2]
    return Facts(sha256, width, height, OK, perceptual_hash(pixels))


def format_of(photo: bytes) -> str | None:
    """Name the format that a photo's first bytes state, None where they state none."""
    if photo[:4] == b"RIFF" and photo[8:12] == b"WEBP":
        return "WEBP"
    if photo[4:8] == b"ftyp":
        return "HEIF" if photo[8:12] in _HEIF_BRANDS else "AVIF or video"
    for magic, kind in {**_MAGIC, **_OTHERS}.items():
        if photo.startswith(magic):
            return kind
    return None


def _refusal(photo: bytes, kind: str | None) -> str:
    if not photo:
        return "empty file"
    if kind == "HEIF":
        return f"not allowed: {HEIF_REFUSAL}"
    return f"not allowed: {kind} (only {ALLOWED})" if kind else "not an image"


def _header(photo: bytes, kind: str) -> tuple[int, int]:
    """Return the width and height that a photo's header states.

    Image.open raises on a bomb before it tells the size; its plugins only read the header. WebP's
    plugin makes room for the whole picture, so `_webp_size` reads its header.
    """
    if kind == "WEBP":
        return _webp_size(photo)
    if kind == "HEIF":
        return header_size(photo)
    with _PLUGINS[kind](io.BytesIO(photo)) as image:
        return image.width, image.height


def _webp_size(photo: bytes) -> tuple[int, int]:
    """Read the header of a WebP photo (RFC 9649, sections 2.5-2.7)."""
    chunk = photo[12:16]
    if chunk == b"VP8X":
        width = int.from_bytes(photo[24:27], "little") + 1
        height = int.from_bytes(photo[27:30], "little") + 1
    elif chunk == b"VP8L":
        bits = int.from_bytes(photo[21:25], "little")
        width = (bits & 0x3FFF) + 1
        height = (bits >> 14 & 0x3FFF) + 1
    else:
        width = int.from_bytes(photo[26:28], "little") & 0x3FFF
        height = int.from_bytes(photo[28:30], "little") & 0x3FFF
    return width, height


def _is_cut(photo: bytes, kind: str) -> bool:
    if kind == "JPEG":
        return not photo.rstrip(b"\0").endswith(b"\xff\xd9")
    if kind == "PNG":
        return b"IEND" not in photo[-64:]
    if kind == "WEBP":
        return int.from_bytes(photo[4:8], "little") + 8 > len(photo)
    return False  # no end to look for: decoding decides
