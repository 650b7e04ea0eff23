"""The result of a run as one SVG file, which a README can show."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

from orchestrator.report import charts, svg_elements
from orchestrator.report.load import Run
from orchestrator.report.page import num, visible
from orchestrator.report.result_section import head, headline
from orchestrator.report.scales import Scale
from orchestrator.store.run_files.scores import Score

_WIDTH = 760.0
_TOP = 74.0  # of the rows
_ROW = 26.0
_NAME_X = 16.0
_PLOT_X = 250.0
_PLOT_WIDTH = 330.0
_VALUE_X = 596.0
_MAX_MEMBERS = 8
_MAX_NAME = 34


@dataclass(frozen=True)
class _Row:
    """One score with its interval."""

    name: str
    score: Score
    is_strong: bool = False


def picture(run: Run) -> str:
    """Return the scores of a run's vote and of its members, with intervals, as an SVG document."""
    rows = _rows(run)
    ends: list[float | None] = []
    for row in rows:
        ends += [row.score.low, row.score.estimate, row.score.high]
    scale = Scale.around(ends, 0.02)
    height = _TOP + _ROW * len(rows) + 46
    facts = head(run)
    body: list[object] = [
        svg_elements.rectangle(0, 0, _WIDTH, height, "paper"),
        svg_elements.text(visible(facts.name), _NAME_X, 30, "name"),
        svg_elements.text(_what(run), _NAME_X, 52, "tick"),
    ]
    for number, row in enumerate(rows):
        score = row.score
        y = _TOP + _ROW * number
        plot = charts.interval(
            score.low,
            score.estimate,
            score.high,
            scale,
            strong=row.is_strong,
            width=_PLOT_WIDTH,
        )
        name = visible(row.name[:_MAX_NAME])
        value = num(score.estimate)
        if score.low is not None and score.high is not None:
            value += f" ({num(score.low)} to {num(score.high)})"
        body += [
            svg_elements.text(name, _NAME_X, y + 14, "axis"),
            svg_elements.tag("g", plot, transform=f"translate({_PLOT_X:g} {y:g})"),
            svg_elements.text(value, _VALUE_X, y + 14, "axis"),
        ]
    foot = _TOP + _ROW * len(rows)
    axis = charts.scale_axis(scale, _PLOT_WIDTH)
    body.append(svg_elements.tag("g", axis, transform=f"translate({_PLOT_X:g} {foot:g})"))
    if not rows:
        body.append(svg_elements.text("no score yet", _NAME_X, _TOP + 14, "axis"))
    drawing = svg_elements.svg(_WIDTH, height, [_style(), *body], f"Result of {facts.run_id}")
    return str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _rows(run: Run) -> list[_Row]:
    rows = []
    first = headline(run)
    if first is not None:
        rows.append(_Row(f"vote, on new {run.words.many}", first, is_strong=True))
    test = run.selection.ensemble.test.headline
    if test is not None:
        rows.append(_Row("vote, on the test set", test, is_strong=True))
    for setting in run.members[:_MAX_MEMBERS]:
        candidate = run.candidates.get(setting)
        if candidate is not None and candidate.score is not None:
            score = Score(estimate=candidate.score, low=candidate.low, high=candidate.high)
            rows.append(_Row(f"member {candidate.variant} {setting}", score))
    return rows


def _what(run: Run) -> str:
    """Return what the numbers are."""
    level = f"{run.selection.level:.0%}".replace("%", " %")
    text = f"{run.score_title} with {level} intervals"
    first = headline(run)
    if first is not None and first.n_groups is not None:
        text += f"; out of fold, {first.n_groups} groups"
    return text


def _style() -> Markup:
    """Return the report's styles, with two of the picture's own."""
    rules = files("orchestrator.report").joinpath("style.css").read_text("utf-8")
    rules += ".paper { fill: var(--ground); } .chart .name { font-size: 19px; font-weight: 600; }"
    return Markup("<style><![CDATA[{}]]></style>").format(Markup(rules))  # noqa: S704 - our own file
