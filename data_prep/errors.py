"""Errors about somebody's data."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED = 3


class DataError(ValueError):
    """Data that cannot be used as the spec describes it. `path` is the spec's entry to look at."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        super().__init__(f"{path}: {text}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        """Let it travel between processes: exceptions are unpickled from their arguments."""
        return type(self), (self.path, self.text)


def some(names: Sequence[str]) -> str:
    """Name the first three of many."""
    rest = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
