"""SVG elements as safe markup: lines, texts, rectangles, and the drawing around them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

_TAG = Markup("<{name}{attributes}>{body}</{name}>")


def tag(name: str, body: object = "", **attributes: object) -> Markup:
    """Build one element.

    Underscores in attribute names become hyphens, a trailing one is dropped.
    """
    text = Markup("")
    for key, value in attributes.items():
        if value is not None:
            attribute = key.rstrip("_").replace("_", "-")
            text += Markup(' {}="{}"').format(attribute, _plain(value))
    return _TAG.format(
        name=Markup(name),  # noqa: S704 - names of elements stand in this file
        attributes=text,
        body=escape(body),
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """Draw a straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def text(
    body: object,
    x: float,
    y: float,
    style: str = "tick",
    anchor: str | None = None,
    transform: str | None = None,
) -> Markup:
    """Write a text; `anchor` says which of its ends or its middle stands at x."""
    return tag("text", body, x=x, y=y, class_=style, text_anchor=anchor, transform=transform)


def rectangle(
    x: float, y: float, width: float, height: float, style: str, body: object = "", **more: object
) -> Markup:
    """Draw a rectangle."""
    return tag("rect", body, x=x, y=y, width=width, height=height, class_=style, **more)


def join(parts: Sequence[object]) -> Markup:
    """Join pieces, escaping those that are plain text."""
    return Markup("").join(escape(part) for part in parts)


def svg(
    width: float, height: float, body: Sequence[object], title: str, *, wide: bool = False
) -> Markup:
    """Wrap a drawing with its accessible title."""
    return tag(
        "svg",
        join([tag("title", title), *body]),
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=title,
        class_="chart wide" if wide else "chart",
    )


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:z.2f}".rstrip("0").rstrip(".")
    return str(value)
