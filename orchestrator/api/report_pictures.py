"""The report's pictures by name."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from orchestrator.api.html import View
from orchestrator.report import page
from orchestrator.report.load import Run


class Plots:
    """Draws sections of the report: `run.plot.curves()`."""

    def __init__(self, read: Callable[[], Run]) -> None:
        self._read = read

    def curves(self) -> View:
        """Draw the learning curves of search and confirm."""
        return self._draw("curves")

    def settings(self) -> View:
        """Draw the effect of the searched settings: parallel axes, slices, importance."""
        return self._draw("search")

    def confusion(self) -> View:
        """Draw the confusions of the vote, out of fold and on the test set."""
        return self._draw("confusion")

    def classes(self) -> View:
        """Draw the scores per class."""
        return self._draw("classes")

    def subgroups(self) -> View:
        """Draw the scores of every value of the labels and of the columns in `subgroups`."""
        return self._draw("subgroups")

    def suspects(self) -> View:
        """Draw the labels that are likely wrong."""
        return self._draw("suspects")

    def gallery(self) -> View:
        """Draw prepared photos that are worth a look."""
        return self._draw("gallery")

    def calibration(self) -> View:
        """Draw how far the stated confidence can be believed."""
        return self._draw("calibration")

    def agreement(self) -> View:
        """Draw how often the members agree."""
        return self._draw("agreement")

    def distributions(self) -> View:
        """Draw the classes of every role."""
        return self._draw("distributions")

    def audit(self) -> View:
        """Draw what the audit of the data found."""
        return self._draw("audit")

    def preparation(self) -> View:
        """Draw photos after every step of their preparation."""
        return self._draw("preparation")

    def result(self) -> View:
        """Draw the first screen of the report."""
        return self._draw("result")

    def _draw(self, anchor: str) -> View:
        return draw_section(self._read(), anchor)


def draw_section(run: Run, anchor: str, text: str = "") -> View:
    """Return one section of the report as a view."""
    for _, title, body in page.draw(run, (anchor,)):
        return View(title, body, text)
    return View(anchor, Markup("<p>Nothing to show.</p>"), text or f"{anchor}: nothing to show")
