"""Errors about somebody's data."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence

_NAMED = 3
_OF_THE_MACHINE = {
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
}


class DataError(ValueError):
    """Data that cannot be used as the spec describes it. `path` is the spec's entry to look at."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        super().__init__(f"{path}: {text}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        """Let it travel between processes: exceptions are unpickled from their arguments."""
        return type(self), (self.path, self.text)


class MachineError(RuntimeError):
    """A disk that is gone, or memory or handles that ran out: it says nothing about a photo."""


def require_machine(error: OSError, place: str, images: str) -> None:
    """Return if the file itself is to blame: it is gone, forbidden or no file.

    Args:
        error: what reading it raised.
        place: of the file.
        images: the folder of all photos.

    Raises:
        MachineError: any other file could fail the same way, or the folder is gone, closed or
            empty.
    """
    if "://" in place:  # a bucket that is to blame has raised MachineError itself
        return
    reason = error.strerror or str(error)
    what = place
    if error.errno not in _OF_THE_MACHINE:
        try:
            with os.scandir(images) as entries:
                if next(entries, None) is not None:
                    return
            reason = "the folder is empty now"
        except OSError as closed:
            reason = closed.strerror or str(closed)
        what = images
    raise MachineError(
        f"{what}: a disk that answers was required, found: {reason}; repair the disk, its mount or "
        "the machine's limits and submit again, what is finished is kept"
    ) from None


def some(names: Sequence[str]) -> str:
    """Name the first three of many."""
    text = "; ".join(names[:_NAMED])
    rest = len(names) - _NAMED
    return f"{text}; and {rest} more" if rest > 0 else text


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' if a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


UNLABELLED = (
    "or add a line to data: `unlabelled: leave_out` leaves such photos out, "
    "`unlabelled: keep` lets them train the labels that they have"
)
"""What helps photos that have no class of some label."""
LEFT_OUT = "left out: "
"""How the status of a photo begins that can be read, and lacks a label."""
LEAVE_OUT = (
    "add photos of other groups, merge it with another class, or leave it out: take it out of the "
    "label's classes and set data.unlabelled: leave_out"
)
"""What helps a class of too few groups."""
