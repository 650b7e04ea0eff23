"""The files in folders of photos: which are photos, which are passed over, which are refused and why."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from data_prep.catalog.photo_paths import (
    EXTENSIONS,
    HEIF_EXTENSIONS,
    HEIF_REFUSAL,
    PLAIN_EXTENSIONS,
    refusal,
)
from data_prep.roots import places

_NOTES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".xmp", ".yaml", ".yml", ".md"),
    *(".html", ".aae", ".log", ".mat", ".pts", ".npy", ".npz", ".pkl", ".mov", ".mp4", ".avi"),
    *(".parquet", ".py", ".ipynb"),
)
"""What people and tools write beside photos: to ignore it loses no photo."""
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
"""Files of file managers, hidden or not."""
_STORE = "runs-store"
"""The store of artifacts, where a command runs in the folder of the data."""
_A_FOLDER = "refused: a folder, photos in it are not read"


def photos_in(
    images: str, folder: str, listed: Collection[str] = ()
) -> Iterator[tuple[str, str | None]]:
    """List a folder's photos, and what else may hold photos with the reason why it is not read.

    Folders in `listed` are read on their own, so they are left out here.
    """
    place = places.real(f"{images}/{folder}")
    if not place.startswith(places.real(images) + os.sep):
        yield folder, "refused: the link leads out of the data folder"
        return
    for name, is_folder in entries(place):
        relative = f"{folder}/{name}"
        if not (is_folder and relative in listed):
            yield shown(relative), refusal(relative) or _unread(name, is_folder=is_folder)


def photos_under(images: str, folder: str) -> Iterator[tuple[str, str | None]]:
    """List a folder's photos and those of the folders in it, such as one per plant."""
    for relative, problem in photos_in(images, folder):
        if problem != _A_FOLDER or places.is_link(f"{images}/{relative}"):
            yield relative, problem
        else:
            yield from photos_under(images, relative)


def _unread(name: str, *, is_folder: bool) -> str | None:
    if is_folder:
        return _A_FOLDER
    if name.lower().endswith(EXTENSIONS):
        return None
    if name.lower().endswith(HEIF_EXTENSIONS):
        return f"refused: {HEIF_REFUSAL}"
    kind = PurePosixPath(name).suffix.lower() or "no extension"
    return f"refused: {kind}, only {', '.join(PLAIN_EXTENSIONS)} are read"


def entries(folder: str) -> list[tuple[str, bool]]:
    """List the names in a folder, sorted, and whether each is a folder."""
    names = []
    for name, is_folder in places.scan(folder):
        if not is_passed_over(name, is_folder=is_folder):
            names.append((name, is_folder))
    return sorted(names)


def is_passed_over(name: str, *, is_folder: bool) -> bool:
    """Return True for hidden files (._mask1.jpg), litter and notes: they hold no photos."""
    lower = name.lower()
    is_note = lower.endswith(_NOTES) and not is_folder
    return lower.startswith(".") or lower in _LITTER or lower == _STORE or is_note


def shown(name: str) -> str:
    """Return a name as text; bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
