"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int | None, noun: str, plural: str = "") -> str:
    """Return a number with its noun: 1 photo, 2 photos.

    Args:
        n: how many; ? where it is not known.
        noun: of one.
        plural: of several; by default the noun with an s.
    """
    if n == 1:
        return f"1 {noun}"
    number = "?" if n is None else str(n)
    return f"{number} {plural or f'{noun}s'}"


def signed(value: float | None) -> str:
    """Return a difference with its sign and three digits, +0.000 where it rounds to zero."""
    return "?" if value is None else f"{value:+z.3f}"
