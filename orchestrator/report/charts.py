"""Small charts as inline SVG.

Colors are CSS classes, so that light, dark and print need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.report.scales import Frame, Scale
from orchestrator.report.svg_elements import join, line, rectangle, svg, tag, text

N_COLORS = 8
"""Classes c0..c7 of style.css: the Okabe-Ito palette. Series beyond them repeat it with dashes."""

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
    """One bar of a group."""

    share: float  # in 0..1
    text: str  # at its end
    color: int


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot."""

    position: float  # on the setting's axis, in 0..1
    score: float
    color: int
    note: str  # tooltip


@dataclass(frozen=True)
class Axis:
    """One axis of a parallel plot."""

    name: str
    positions: list[float | None]  # of every row, in 0..1; None where the axis does not apply
    ticks: list[tuple[float, str]]
    words: bool = False  # categories, not numbers


def interval(
    low: float | None,
    estimate: float | None,
    high: float | None,
    scale: Scale | None,
    *,
    strong: bool = False,
    mark: float | None = None,
    width: float = 190,
) -> Markup:
    """Draw an estimate with its interval on a scale that the rows of a table share.

    Args:
        low: lower end of the interval, None where there is none.
        estimate: nothing is drawn where it is None.
        high: upper end of the interval, None where there is none.
        scale: values at the left and right edge.
        strong: draws the row in the accent color.
        mark: where a vertical reference line stands, such as 0.
        width: in px.
    """
    if estimate is None or scale is None:
        return Markup("")
    if low is None or high is None:
        low = estimate
        high = estimate
    frame = Frame(width, 20.0, left=6.0, right=6.0, top=0.0, bottom=0.0)

    def x(value: float) -> float:
        return frame.x(min(1.0, max(0.0, scale.share(value))))

    body: list[object] = [line(frame.left, 10, width - frame.right, 10, "rail")]
    for tick in scale.ticks(4):
        body.append(line(x(tick), 4, x(tick), 16, "grid"))
    if mark is not None and scale.low <= mark <= scale.high:
        body.append(line(x(mark), 1, x(mark), 19, "reference"))
    color = "c0" if strong else "muted"
    body.append(line(x(low), 10, x(high), 10, f"bar {color}"))
    body.append(tag("circle", cx=x(estimate), cy=10, r=4.5, class_=f"dot {color}"))
    title = f"{estimate:z.3f}, 90 % interval {low:z.3f} to {high:z.3f}"
    return svg(width, frame.height, body, title)


def scale_axis(scale: Scale | None, width: float = 190) -> Markup:
    """Draw the tick labels of a column of intervals."""
    if scale is None:
        return Markup("")
    frame = Frame(width, 14.0, left=6.0, right=6.0, top=0.0, bottom=0.0)
    body = []
    for tick in scale.ticks(4):
        body.append(text(f"{tick:g}", frame.x(scale.share(tick)), 11, anchor="middle"))
    return svg(width, frame.height, body, "scale")


def lines(series: Sequence[Series], x_label: str, y_label: str, *, title: str) -> Markup:
    """Draw lines over epochs, the strong ones on top; the name of a line is its tooltip."""
    points = [point for item in series for point in item.points]
    if not points:
        return Markup("")
    frame = Frame(360.0, 240.0, left=54.0, right=12.0, top=10.0, bottom=36.0)
    across = Scale(min(x for x, _ in points), max(x for x, _ in points))
    up = _padded(min(y for _, y in points), max(y for _, y in points))

    def x(value: float) -> float:
        return frame.x(across.share(value) if across.high > across.low else 0.5)

    body = frame.grid(up)
    foot = frame.height - frame.bottom + 15
    for tick in across.ticks(8):
        if float(tick).is_integer():
            body.append(text(f"{tick:g}", x(tick), foot, anchor="middle"))
    body.append(text(x_label, frame.x(0.5), frame.height - 4, "axis", "middle"))
    middle = frame.y(0.5)
    turned = f"rotate(-90 11 {middle:g})"
    body.append(text(y_label, 11, middle, "axis", "middle", turned))
    for item in sorted(series, key=lambda item: item.strong):
        name = tag("title", item.name)
        color = color_style(item.color)
        placed = [(x(value), frame.y(up.share(score))) for value, score in item.points]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in placed)
        style = f"line {color} strong" if item.strong else f"line {color}"
        body.append(tag("polyline", name, points=path, class_=style))
        if len(placed) == 1 or item.strong:
            end = placed[-1]
            body.append(tag("circle", name, cx=end[0], cy=end[1], r=3, class_=f"dot {color}"))
    return svg(frame.width, frame.height, body, title, wide=True)


def bars(
    groups: Sequence[tuple[str, Sequence[Bar]]], *, title: str, width: float = 340, left: float = 96
) -> Markup:
    """Draw groups of horizontal bars, one group per class."""
    row = 11.0
    gap = 9.0
    shares = [bar.share for _, members in groups for bar in members]
    widest = max(shares, default=0.0) or 1.0
    room = width - left - 92
    body: list[object] = []
    y = 2.0
    for name, members in groups:
        middle = y + row * len(members) / 2
        body.append(text(_named(name, int(left / 6.3)), left - 8, middle + 4, "axis", "end"))
        for bar in members:
            length = bar.share / widest * room
            style = f"fill {color_style(bar.color)}"
            body.append(rectangle(left, y, max(length, 0.6), row - 2, style, rx=1))
            body.append(text(bar.text, left + length + 5, y + row - 3.2))
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
) -> Markup:
    """Draw counts of a number as upright bars, with borders as dashed lines.

    Args:
        counts: bar i stands for values from start + i * width up to the next.
        start: where the first bar begins.
        width: of a bar, in the number's unit.
        marks: (value, what it is): lines at the left edge of the value's bar.
        title: of the drawing.
    """
    if not counts:
        return Markup("")
    frame = Frame(620.0, 190.0, left=44.0, right=12.0, top=22.0, bottom=26.0)
    across = Scale(start, start + width * len(counts))
    up = Scale(0.0, max(counts) or 1.0)
    bar_width = (frame.x(1.0) - frame.x(0.0)) / len(counts)

    def x(value: float) -> float:
        return frame.x(min(1.0, max(0.0, across.share(value))))

    body = frame.grid(up, 4)
    for index, n in enumerate(counts):
        value = start + index * width
        values = f"{value:g}" if width == 1 else f"{value:g} to {value + width:g}"
        top = frame.y(up.share(n))
        note = tag("title", f"{values}: {n:g}")
        height = frame.y(0.0) - top
        body.append(
            rectangle(x(value) + 0.5, top, max(0.5, bar_width - 1), height, "fill c0", note)
        )
    for tick in across.ticks(8):
        body.append(text(f"{tick:g}", x(tick), frame.height - 9, anchor="middle"))
    for value, what in marks:
        body.append(line(x(value), frame.top - 6, x(value), frame.y(0.0), "reference"))
        body.append(text(f"{what} {value:g}", x(value), frame.top - 9, anchor="middle"))
    return svg(frame.width, frame.height, body, title, wide=True)


def matrix(
    counts: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    title: str,
    cell: float = 34,
    as_share: bool = False,
) -> Markup:
    """Draw a square of numbers, each shaded by its share of the row.

    With `as_share` the numbers are shares themselves, and each is shaded by its own value.
    """
    n = len(names)
    longest = 12 + 6.2 * max((len(name) for name in names), default=4)
    room = min(150.0, longest)
    top = 14.0 + room * 0.72
    body: list[object] = []
    for i, name in enumerate(names):
        y = top + i * cell
        middle = room + (i + 0.5) * cell
        turned = f"rotate(-45 {middle:g} {top - 6:g})"
        body.append(text(_named(name, 22), room - 6, y + cell / 2 + 3.5, "axis", "end"))
        body.append(text(_named(name, 22), middle, top - 6, "axis", transform=turned))
        total = 1.0 if as_share else sum(counts[i]) or 1.0
        for j, value in enumerate(counts[i][:n]):
            x = room + j * cell
            share = value / total if math.isfinite(value) else 0.0
            shown = f"{value:.2f}" if as_share else f"{value:.0f}"
            note = f"{name} → {names[j]}: {shown}"
            if not as_share:
                note += f" ({share:.0%} of the row)"
            opacity = f"{0.04 + 0.96 * share:.3f}"
            body.append(_cell(x, y, cell, "heat", tag("title", note), fill_opacity=opacity))
            if value or as_share:
                tone = f"tick {_tone_on_heat(share)}"
                body.append(text(shown, x + cell / 2, y + cell / 2 + 3.5, tone, "middle"))
        body.append(_cell(room + i * cell, y, cell, "diagonal"))
    return svg(room + n * cell + room * 0.6, top + n * cell + 18, body, title)


def _tone_on_heat(share: float) -> str:
    """Return the class of a number on a cell; the light and the dark page turn at different shares."""
    if share > 0.85:
        return "on-heat"
    return "mid-heat" if share > 0.6 else "off-heat"


def _cell(x: float, y: float, size: float, style: str, body: object = "", **more: object) -> Markup:
    return rectangle(x + 0.5, y + 0.5, size - 1, size - 1, style, body, **more)


def parallel(
    axes: Sequence[Axis], scores: Sequence[float], names: Sequence[str], *, title: str
) -> Markup:
    """Draw one line per trial across its settings.

    The best tenth is strong; of the others, the better ones are darker.
    """
    step = 150.0
    side = 64.0
    frame = Frame(
        2 * side + step * (len(axes) - 1), 270.0, left=side, right=side, top=34.0, bottom=38.0
    )
    absent = -0.14  # below the pole: the setting does not apply to the trial
    order = sorted(range(len(scores)), key=lambda row: scores[row])
    n_best = max(1, len(order) // 10)
    body: list[object] = []
    for rank, row in enumerate(order):
        corners = []
        for index, axis in enumerate(axes):
            position = axis.positions[row]
            y = frame.y(absent if position is None else position)
            corners.append(f"{side + index * step:.1f},{y:.1f}")
        style = "line strong c3"
        opacity = None
        if rank < len(order) - n_best:
            style = "line c0"
            opacity = f"{0.15 + 0.45 * rank / max(1, len(order)):.2f}"
        path = " ".join(corners)
        name = tag("title", names[row])
        body.append(tag("polyline", name, points=path, class_=style, stroke_opacity=opacity))
    for index, axis in enumerate(axes):
        x = side + index * step
        body.append(line(x, frame.top, x, frame.y(0.0), "pole"))
        body.append(text(_named(axis.name, 19), x, 16, "axis", "middle"))
        ticks = list(axis.ticks)
        if None in axis.positions:
            ticks.append((absent, "not used"))
        for position, label in ticks:
            body.append(text(shorten(label, 12), x + 6, frame.y(position) + 3.5, "tick halo"))
    return svg(frame.width, frame.height, body, title, wide=True)


def scatter(
    points: Sequence[Point],
    ticks: Sequence[tuple[float, str]],
    name: str,
    scale: Scale,
    front: Sequence[Point] = (),
) -> Markup:
    """Draw score against one setting.

    Args:
        points: one per trial.
        ticks: (position, text) of the setting's axis.
        name: of the setting.
        scale: scores at the bottom and the top, shared by the plots beside it.
        front: points from the left to the right that steps go through.
    """
    frame = Frame(250.0, 190.0, left=40.0, right=16.0, top=10.0, bottom=40.0)

    def x(position: float) -> float:
        return frame.x(0.04 + 0.92 * position)

    body = frame.grid(scale, 4)
    last = -1.0
    for position, label in ticks:
        if position - last < _TICK_ROOM:
            continue
        last = position
        anchor = "middle"
        if position < 0.1:
            anchor = "start"
        elif position > 0.9:
            anchor = "end"
        foot = frame.height - frame.bottom + 15
        body.append(text(shorten(label, 12), x(position), foot, anchor=anchor))
    body.append(text(_named(name, 34), frame.x(0.5), frame.height - 6, "axis", "middle"))
    corners: list[str] = []
    for point in front:
        left = x(point.position)
        if corners:  # up to here the score stays that of the point before
            corners.append(f"{left:.1f},{corners[-1].partition(',')[2]}")
        corners.append(f"{left:.1f},{frame.y(scale.share(point.score)):.1f}")
    if len(corners) > 1:
        body.append(tag("polyline", points=" ".join(corners), class_="line strong c3"))
    for point in points:
        body.append(
            tag(
                "circle",
                tag("title", point.note),
                cx=x(point.position),
                cy=frame.y(scale.share(point.score)),
                r=3.2,
                class_=f"dot {color_style(point.color)}",
                fill_opacity="0.75",
            )
        )
    return svg(frame.width, frame.height, body, f"score against {name}")


def shorten(text: str, limit: int) -> str:
    """Cut a text in its middle, where names of one family differ least."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return text[: limit - 1 - tail] + "…" + text[len(text) - tail :]


def _named(name: str, limit: int) -> Markup:
    """Return a name cut to a length, with the whole of it as a tooltip."""
    return join([shorten(name, limit), tag("title", name)])


def _padded(low: float, high: float) -> Scale:
    if high <= low:
        return Scale(low - 0.5, high + 0.5)
    room = 0.06 * (high - low)
    return Scale(0.0 if 0 <= low < room else low - room, high + room)


def color_style(index: int) -> str:
    """Return the CSS classes of a series by its number."""
    return f"c{index % N_COLORS}" + (" dashed" if index >= N_COLORS else "")
