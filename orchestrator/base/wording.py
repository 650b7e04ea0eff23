"""Numbers and names in sentences."""

from __future__ import annotations

_SHOWN_AS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
} | {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""What a terminal would obey (ECMA-48's control characters), and what turns the direction of writing."""


def printable(text: str) -> str:
    """Return a text for a terminal: control characters out of names are shown, not obeyed."""
    return text.translate(_SHOWN_AS)


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
