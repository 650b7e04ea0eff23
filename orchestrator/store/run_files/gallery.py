"""The records of gallery.json."""

from __future__ import annotations

from orchestrator.store.run_files.records import FileRecord


class GalleryPhoto(FileRecord):
    """A prepared photo that is worth a look."""

    kind: str = ""  # sure_wrong | disputed | suspect
    sample_id: str = ""
    given: int = -1  # joint class that the data state
    answer: int = -1  # of the vote, out of fold
    confidence: float | None = None  # mean probability of the answer
    votes: int | None = None  # for the answer
    n_votes: int | None = None
    jpeg: str = ""  # base64


class Gallery(FileRecord):
    """What gallery.json holds."""

    method: str = ""  # how likely wrong labels were found
    photos: tuple[GalleryPhoto, ...] = ()
