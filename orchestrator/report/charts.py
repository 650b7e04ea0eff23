"""Small charts as inline SVG. Colors are CSS classes, so that light, dark and print need no second drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

N_COLORS = 8
"""Classes c0..c7 of style.css: the Okabe-Ito palette. Series beyond them repeat it with dashes."""

_TAG = Markup("<{name}{attributes}>{body}</{name}>")
_TICK_ROOM = 0.2  # of an axis 250 px wide, for a label of five digits


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: list[tuple[float, float]]
    color: int
    strong: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar of a group: its share in 0..1, the text at its end, its color."""

    share: float
    text: str
    color: int


@dataclass(frozen=True)
class Axis:
    """One axis of a parallel plot: positions in 0..1 of every row (None where it does not apply), and its ticks."""

    name: str
    positions: list[float | None]
    ticks: list[tuple[float, str]]
    words: bool = False  # categories, not numbers


def tag(name: str, body: object = "", **attributes: object) -> Markup:
    """Build one element; underscores in attribute names become hyphens, a trailing one is dropped."""
    text = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    return _TAG.format(
        name=Markup(name),  # noqa: S704 - names of elements stand in this file
        attributes=text,
        body=escape(body),
    )


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


def nice_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Return about `n` round numbers that cover low..high from inside."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(1, n)
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the decimal logarithms of round numbers in 10^low..10^high: decades, or 1, 2, 5 in a short range."""
    steps = (
        (1,)
        if high - low >= 2
        else (1, 2, 5)
        if high - low >= 0.7
        else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    )
    found = [
        math.log10(step) + decade
        for decade in range(math.floor(low), math.floor(high) + 1)
        for step in steps
    ]
    return [tick for tick in found if low - 1e-9 <= tick <= high + 1e-9]


def interval(
    values: tuple[float, float, float],
    scale: tuple[float, float],
    *,
    strong: bool = False,
    mark: float | None = None,
    width: float = 190,
) -> Markup:
    """Draw an estimate with its interval on a scale shared by a table's rows.

    Args:
        values: low, estimate, high.
        scale: values at the left and right edge.
        strong: whether the row is marked.
        mark: where a vertical reference line stands, such as 0.
        width: in px.
    """
    low, estimate, high = values
    height, pad = 20.0, 6.0

    def x(value: float) -> float:
        share = (value - scale[0]) / ((scale[1] - scale[0]) or 1.0)
        return pad + min(1.0, max(0.0, share)) * (width - 2 * pad)

    body: list[object] = [tag("line", x1=pad, x2=width - pad, y1=10, y2=10, class_="rail")]
    body += [
        tag("line", x1=x(tick), x2=x(tick), y1=4, y2=16, class_="grid")
        for tick in nice_ticks(*scale, 4)
    ]
    if mark is not None and scale[0] <= mark <= scale[1]:
        body.append(tag("line", x1=x(mark), x2=x(mark), y1=1, y2=19, class_="reference"))
    color = "c0" if strong else "muted"
    body.append(tag("line", x1=x(low), x2=x(high), y1=10, y2=10, class_=f"bar {color}"))
    body.append(tag("circle", cx=x(estimate), cy=10, r=4.5, class_=f"dot {color}"))
    return svg(width, height, body, f"{estimate:.3f}, 90 % interval {low:.3f} to {high:.3f}")


def scale_axis(scale: tuple[float, float], width: float = 190) -> Markup:
    """Draw the tick labels of a column of intervals."""
    pad = 6.0
    ticks = nice_ticks(*scale, 4)
    body = [
        tag("text", f"{tick:g}", x=pad + (tick - scale[0]) / ((scale[1] - scale[0]) or 1.0) * (width - 2 * pad), y=11,
            class_="tick", text_anchor="middle")
        for tick in ticks
    ]  # fmt: skip
    return svg(width, 14, body, "scale")


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    title: str,
    width: float = 360,
    height: float = 240,
) -> Markup:
    """Draw lines over epochs; strong ones on top, every line with its name as a tooltip."""
    points = [point for one in series for point in one.points]
    if not points:
        return Markup("")
    left, right, top, bottom = 54.0, 12.0, 10.0, 36.0
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = _padded(min(p[1] for p in points), max(p[1] for p in points))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - x_low) / ((x_high - x_low) or 1.0) if x_high > x_low else 0.5
        up = (point[1] - y_low) / ((y_high - y_low) or 1.0)
        return left + across * (width - left - right), height - bottom - up * (
            height - top - bottom
        )

    body: list[object] = []
    for tick in nice_ticks(y_low, y_high):
        y = place((x_low, tick))[1]
        body.append(tag("line", x1=left, x2=width - right, y1=y, y2=y, class_="grid"))
        body.append(
            tag("text", f"{tick:g}", x=left - 6, y=y + 3.5, class_="tick", text_anchor="end")
        )
    foot = height - bottom + 15
    body += [
        tag(
            "text",
            f"{tick:g}",
            x=place((tick, y_low))[0],
            y=foot,
            class_="tick",
            text_anchor="middle",
        )
        for tick in _whole_ticks(x_low, x_high)
    ]
    body.append(
        tag(
            "text",
            x_label,
            x=(left + width - right) / 2,
            y=height - 4,
            class_="axis",
            text_anchor="middle",
        )
    )
    middle = (top + height - bottom) / 2
    body.append(
        tag(
            "text",
            y_label,
            x=11,
            y=middle,
            class_="axis",
            text_anchor="middle",
            transform=f"rotate(-90 11 {middle:g})",
        )
    )
    for one in sorted(series, key=lambda item: item.strong):
        placed = [place(point) for point in one.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        style = f"line {_color(one.color)}{' strong' if one.strong else ''}"
        body.append(tag("polyline", tag("title", one.name), points=path, class_=style))
        if len(placed) == 1 or one.strong:
            body.append(
                tag(
                    "circle",
                    tag("title", one.name),
                    cx=placed[-1][0],
                    cy=placed[-1][1],
                    r=3,
                    class_=f"dot {_color(one.color)}",
                )
            )
    return svg(width, height, body, title, wide=True)


def bars(
    groups: Sequence[tuple[str, Sequence[Bar]]], *, title: str, width: float = 340, left: float = 96
) -> Markup:
    """Draw groups of horizontal bars, one group per class."""
    row, gap = 11.0, 9.0
    widest = max((bar.share for _, found in groups for bar in found), default=0.0) or 1.0
    room = width - left - 92
    body: list[object] = []
    y = 2.0
    for name, found in groups:
        middle = y + row * len(found) / 2
        body.append(
            tag(
                "text",
                join([shorten(name, int(left / 6.3)), tag("title", name)]),
                x=left - 8,
                y=middle + 4,
                class_="axis",
                text_anchor="end",
            )
        )
        for bar in found:
            length = bar.share / widest * room
            body.append(
                tag(
                    "rect",
                    x=left,
                    y=y,
                    width=max(length, 0.6),
                    height=row - 2,
                    rx=1,
                    class_=f"fill {_color(bar.color)}",
                )
            )
            body.append(tag("text", bar.text, x=left + length + 5, y=y + row - 3.2, class_="tick"))
            y += row
        y += gap
    return svg(width, max(y - gap + 2, 4), body, title)


def histogram(
    counts: Sequence[float],
    start: float,
    width: float,
    marks: Sequence[tuple[float, str]],
    *,
    title: str,
    size: tuple[float, float] = (620, 190),
) -> Markup:
    """Draw counts of a number as upright bars, with borders as dashed lines.

    Args:
        counts: bar i stands for values from start + i * width up to the next.
        start: where the first bar begins.
        width: of a bar, in the number's unit.
        marks: (value, what it is): lines at the left edge of the value's bar.
        title: of the drawing.
        size: in px.
    """
    if not counts:
        return Markup("")
    left, right, top, bottom = 44.0, 12.0, 22.0, 26.0
    across, up = size[0] - left - right, size[1] - top - bottom
    end, highest = start + width * len(counts), max(counts) or 1.0

    def x(value: float) -> float:
        return left + min(1.0, max(0.0, (value - start) / ((end - start) or 1.0))) * across

    body: list[object] = []
    for tick in nice_ticks(0.0, highest, 4):
        y = top + up * (1 - tick / highest)
        body.append(tag("line", x1=left, x2=size[0] - right, y1=y, y2=y, class_="grid"))
        body.append(
            tag("text", f"{tick:g}", x=left - 6, y=y + 3.5, class_="tick", text_anchor="end")
        )
    for at, n in enumerate(counts):
        value = start + at * width
        tall = up * n / highest
        note = tag(
            "title", f"{value:g}: {n:g}" if width == 1 else f"{value:g} to {value + width:g}: {n:g}"
        )
        body.append(
            tag(
                "rect",
                note,
                x=x(value) + 0.5,
                y=top + up - tall,
                width=max(0.5, across / len(counts) - 1),
                height=tall,
                class_="fill c0",
            )
        )
    body += [
        tag("text", f"{tick:g}", x=x(tick), y=size[1] - 9, class_="tick", text_anchor="middle")
        for tick in nice_ticks(start, end, 8)
    ]
    for value, what in marks:
        body.append(
            tag("line", x1=x(value), x2=x(value), y1=top - 6, y2=top + up, class_="reference")
        )
        body.append(
            tag(
                "text",
                f"{what} {value:g}",
                x=x(value),
                y=top - 9,
                class_="tick",
                text_anchor="middle",
            )
        )
    return svg(size[0], size[1], body, title, wide=True)


def matrix(
    counts: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    title: str,
    cell: float = 34,
    as_share: bool = False,
) -> Markup:
    """Draw a square of numbers, shaded by their share of the row (or by the number itself with `as_share`)."""
    n = len(names)
    room = min(150.0, 12 + 6.2 * max((len(name) for name in names), default=4))
    top = 14.0 + min(room, 12 + 6.2 * max((len(name) for name in names), default=4)) * 0.72
    width, height = room + n * cell + room * 0.6, top + n * cell + 18
    body: list[object] = []
    for i, name in enumerate(names):
        y = top + (i + 0.5) * cell
        body.append(
            tag(
                "text",
                join([shorten(name, 22), tag("title", name)]),
                x=room - 6,
                y=y + 3.5,
                class_="axis",
                text_anchor="end",
            )
        )
        x = room + (i + 0.5) * cell
        body.append(
            tag(
                "text",
                join([shorten(name, 22), tag("title", name)]),
                x=x,
                y=top - 6,
                class_="axis",
                transform=f"rotate(-45 {x:g} {top - 6:g})",
            )
        )
        total = sum(counts[i]) or 1.0
        for j in range(n):
            value = counts[i][j]
            shown = value if math.isfinite(value) else 0.0
            share = shown if as_share else shown / total
            text = f"{value:.2f}" if as_share else f"{value:.0f}"
            note = f"{name} → {names[j]}: {text}" + (
                "" if as_share else f" ({share:.0%} of the row)"
            )
            x0, y0 = room + j * cell, top + i * cell
            body.append(
                tag(
                    "rect",
                    tag("title", note),
                    x=x0 + 0.5,
                    y=y0 + 0.5,
                    width=cell - 1,
                    height=cell - 1,
                    class_="heat",
                    fill_opacity=f"{0.04 + 0.96 * share:.3f}",
                )
            )
            if value or as_share:
                tone = "on-heat" if share > 0.5 else "off-heat"
                body.append(
                    tag(
                        "text",
                        text,
                        x=x0 + cell / 2,
                        y=y0 + cell / 2 + 3.5,
                        class_=f"tick {tone}",
                        text_anchor="middle",
                    )
                )
            if i == j:
                body.append(
                    tag(
                        "rect",
                        x=x0 + 0.5,
                        y=y0 + 0.5,
                        width=cell - 1,
                        height=cell - 1,
                        class_="diagonal",
                    )
                )
    return svg(width, height, body, title)


def parallel(
    axes: Sequence[Axis], scores: Sequence[float], names: Sequence[str], *, title: str
) -> Markup:
    """Draw one line per trial across its settings; the best tenth is strong, the stronger the better."""
    step, top, bottom, side = 150.0, 34.0, 38.0, 64.0
    absent = -0.14  # below the pole: the setting does not apply to the trial
    width, height = 2 * side + step * (len(axes) - 1), 270.0

    def place(axis: int, position: float) -> tuple[float, float]:
        return side + axis * step, height - bottom - position * (height - top - bottom)

    order = sorted(range(len(scores)), key=lambda row: scores[row])
    n_best = max(1, len(order) // 10)
    body: list[object] = []
    for rank, row in enumerate(order):
        best = rank >= len(order) - n_best
        positions = [axis.positions[row] for axis in axes]
        path = " ".join(
            "{:.1f},{:.1f}".format(*place(at, absent if one is None else one))
            for at, one in enumerate(positions)
        )
        opacity = None if best else f"{0.15 + 0.45 * rank / max(1, len(order)):.2f}"
        body.append(
            tag(
                "polyline",
                tag("title", names[row]),
                points=path,
                class_="line strong c3" if best else "line c0",
                stroke_opacity=opacity,
            )
        )
    for index, axis in enumerate(axes):
        x, y = place(index, 0.0)
        body.append(tag("line", x1=x, x2=x, y1=top, y2=y, class_="pole"))
        text = join([shorten(axis.name, 19), tag("title", axis.name)])
        body.append(tag("text", text, x=x, y=16, class_="axis", text_anchor="middle"))
        ticks = [*axis.ticks, (absent, "not used")] if None in axis.positions else axis.ticks
        for position, label in ticks:
            spot = place(index, position)
            body.append(
                tag("text", shorten(label, 12), x=spot[0] + 6, y=spot[1] + 3.5, class_="tick halo")
            )
    return svg(width, height, body, title, wide=True)


def scatter(
    points: Sequence[tuple[float, float, int, str]],
    ticks: Sequence[tuple[float, str]],
    name: str,
    scale: tuple[float, float],
) -> Markup:
    """Draw score against one setting.

    Args:
        points: (position in 0..1, score, color, tooltip).
        ticks: (position, text) of the setting's axis.
        name: of the setting.
        scale: scores at the bottom and the top, shared by neighbors.
    """
    width, height, left, right, top, bottom = 250.0, 190.0, 40.0, 16.0, 10.0, 40.0

    def place(position: float, score: float) -> tuple[float, float]:
        up = (score - scale[0]) / ((scale[1] - scale[0]) or 1.0)
        return left + (0.04 + 0.92 * position) * (width - left - right), height - bottom - up * (
            height - top - bottom
        )

    body: list[object] = []
    for tick in nice_ticks(*scale, 4):
        y = place(0, tick)[1]
        body.append(tag("line", x1=left, x2=width - right, y1=y, y2=y, class_="grid"))
        body.append(
            tag("text", f"{tick:g}", x=left - 6, y=y + 3.5, class_="tick", text_anchor="end")
        )
    last = -1.0
    for position, text in ticks:
        if position - last < _TICK_ROOM:
            continue
        last = position
        anchor = "start" if position < 0.1 else "end" if position > 0.9 else "middle"
        body.append(
            tag(
                "text",
                shorten(text, 12),
                x=place(position, scale[0])[0],
                y=height - bottom + 15,
                class_="tick",
                text_anchor=anchor,
            )
        )
    body.append(
        tag(
            "text",
            join([shorten(name, 34), tag("title", name)]),
            x=(left + width - right) / 2,
            y=height - 6,
            class_="axis",
            text_anchor="middle",
        )
    )
    for position, score, color, note in points:
        x, y = place(position, score)
        body.append(
            tag(
                "circle",
                tag("title", note),
                cx=x,
                cy=y,
                r=3.2,
                class_=f"dot {_color(color)}",
                fill_opacity="0.75",
            )
        )
    return svg(width, height, body, f"score against {name}")


def shorten(text: str, limit: int) -> str:
    """Cut a text in its middle, where names of one family differ least."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return text[: limit - 1 - tail] + "…" + text[len(text) - tail :]


def _padded(low: float, high: float) -> tuple[float, float]:
    if high <= low:
        return low - 0.5, high + 0.5
    room = 0.06 * (high - low)
    return (0.0 if 0 <= low < room else low - room), high + room


def _whole_ticks(low: float, high: float) -> list[float]:
    return [tick for tick in nice_ticks(low, high, 8) if float(tick).is_integer()]


def _color(index: int) -> str:
    return f"c{index % N_COLORS}" + (" dashed" if index >= N_COLORS else "")


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
