"""Errors about somebody's data."""
from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used as the spec describes it. `path` is the spec's entry to look at."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        super().__init__(f"{path}: {text}")
