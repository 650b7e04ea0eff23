"""From the names in a table to the files that they mean.

A name that is no path below the photos' folder as it stands is looked for in other forms: without
blanks around it, with backslashes, with a folder in front of it, without the extension, in another
Unicode form (NFC or NFD), in another case. Only a file that exists, and no other, is taken.
"""

from __future__ import annotations

import importlib.util
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_prep.config import Data, Source, TestTable
from data_prep.errors import DataError
from data_prep.roots.places import join, lies_there, walk

HEIF_EXTENSIONS = (".heic", ".heif")
READS_HEIF = importlib.util.find_spec("pillow_heif") is not None
"""True where the library that decodes HEIC is installed; nothing is imported to see it."""
HEIF_REFUSAL = "HEIC needs the package pillow-heif: pip install 'robust-vote[heic]'"
PLAIN_EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EXTENSIONS = (*PLAIN_EXTENSIONS, *HEIF_EXTENSIONS) if READS_HEIF else PLAIN_EXTENSIONS
_FOREIGN = re.compile(r"[a-z][a-z0-9+.-]*://|data:|[a-z]:[\\/]", re.IGNORECASE)
"""URLs and drive letters."""
_DRIVE = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)


def sample_id_of(side: str, relative: str) -> str:
    """Return the id of a photo: `train/` or `test/`, then its path below the photos' folder."""
    return f"{side}/{relative}".replace("\0", "\\0")


def photo_path(data: Data, base: Path, sample_id: str) -> str:
    """Return where the photo of a sample is: a path, or a URL of a bucket.

    Links below the root were resolved and checked when the catalog was built.

    Raises:
        DataError: the id leads out of the data root.
    """
    side, _, relative = sample_id.partition("/")
    if side == "test" and isinstance(data.test, TestTable):
        section: Source | TestTable = data.test
        where = "data.test"
    else:
        section = data.source
        where = "data.source"
    if problem := refusal(relative):
        raise DataError(where, f"{sample_id!r}: {problem}")
    return join(base, section.root, section.images, relative)


def refusal(relative: str) -> str | None:
    """Return why a path must not be opened, None if it stays below its root.

    Links are checked when the photo is read.
    """
    parts = relative.replace("\\", "/").split("/")
    if not relative or "\0" in relative:
        return "refused: an empty path or one with a NUL"
    if _FOREIGN.match(relative):
        return "refused: an address, not a path below images/"
    if relative.startswith(("/", "\\", "~/")):
        return "refused: a path from outside images/"
    if ".." in parts:
        return "refused: the path leads out of images/"
    try:
        relative.encode()
    except UnicodeEncodeError:
        return "refused: the name is not UTF-8"
    return None


def composed(text: str) -> str:
    """Return the Unicode form (NFC) in which names are compared: two forms of one name are one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Resolved:
    """Names as paths below the photos' folder, in their order."""

    paths: list[str]
    lost: list[str]  # names of which there is no file, or more than one
    notes: list[str] = field(default_factory=list)  # how names differ from those of the files


class _Match(NamedTuple):
    path: str
    prefix: str  # what stands before the path in the table
    how: str


def resolve(images: str, names: Sequence[str]) -> Resolved:
    """Find the file or folder that each name means; a name that is refused stays as it is.

    Args:
        images: the folder of all photos.
        names: as a table has them.
    """
    paths = list(names)
    unknown = []
    for position, name in enumerate(names):
        tidy = PurePosixPath(name).as_posix() if refusal(name) is None else None
        if tidy is not None and lies_there(f"{images}/{tidy}"):
            paths[position] = tidy
        else:
            unknown.append(position)
    if not unknown:
        return Resolved(paths, [])
    index = _Index(images)
    matches = {position: index.find(names[position]) for position in unknown}
    prefixes = Counter(match.prefix for match in matches.values() if match)
    # one prefix for all: else two folders could be taken for one
    prefix = max(prefixes, key=lambda text: prefixes[text], default="")
    lost = []
    reasons: Counter[str] = Counter()
    for position, match in matches.items():
        if match is not None and match.prefix in {"", prefix}:
            paths[position] = match.path
            reasons.update([match.how] if match.how else [])
            if match.prefix:
                reasons[f"begin with {match.prefix!r}, which is left out"] += 1
        elif refusal(names[position]) is None:
            lost.append(names[position])
    notes = [f"{n} names in the table {reason}" for reason, n in reasons.items()]
    return Resolved(paths, lost, notes)


class _Index:
    """The files and folders below a folder, by the forms of their names."""

    def __init__(self, images: str) -> None:
        self._by_form: dict[str, set[str]] = {}
        for place, folders, files in walk(images):
            below = os.path.relpath(place, images).replace(os.sep, "/")
            prefix = "" if below == "." else f"{below}/"
            for name in [*folders, *files]:
                self._add(f"{prefix}{name}")

    def _add(self, path: str) -> None:
        text = composed(path)
        forms = {text, text.casefold()}
        stem, dot, extension = text.rpartition(".")
        if dot and f".{extension.lower()}" in EXTENSIONS:
            forms |= {f"{stem}.*", f"{stem}.*".casefold()}
        for form in forms:
            self._by_form.setdefault(form, set()).add(path)

    def find(self, name: str) -> _Match | None:
        """Return the only file that a name can mean, or None."""
        text = composed(name.strip())
        parts = re.split(r"[\\/]+", text)
        is_address = _FOREIGN.match(text) and not _DRIVE.match(text)
        if not text or is_address or ".." in parts or parts[0] == "~":
            return None
        for start in range(len(parts)):
            rest = "/".join(part for part in parts[start:] if part not in {"", "."})
            forms = (
                (rest, ""),
                (f"{rest}.*", "lack the extension"),
                (rest.casefold(), "differ in case"),
                (f"{rest}.*".casefold(), "lack the extension and differ in case"),
            )
            for form, how in forms:
                paths = self._by_form.get(form, set()) if rest else set()
                if len(paths) == 1:
                    path = next(iter(paths))
                    kept = len(re.split(r"[\\/]+", rest))
                    prefix = text[: len(text) - len("/".join(parts[-kept:]))] if start else ""
                    return _Match(path, prefix, how or _difference(name, path, text))
                if paths:
                    return None
        return None


def _difference(name: str, path: str, text: str) -> str:
    if name != name.strip():
        return "have blanks around them"
    if "\\" in name:
        return "have backslashes"
    if not path.isascii() and path not in text:
        return "are stored in another Unicode form (NFC or NFD)"
    return ""
