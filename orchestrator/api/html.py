"""What a notebook shows: sections of the report, with the report's style and nothing else of its page."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup, escape

from data_prep.files import write_text

_CLASS = "orchestrator-view"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<title>{title}</title></head><body>{body}</body></html>
"""


class View:
    """A piece of the report: a notebook draws it, `save` writes it, `print` shows its text."""

    def __init__(self, title: str, body: Markup, text: str = "") -> None:
        self.title = title
        self.body = body
        self._text = text

    def _repr_html_(self) -> str:
        return f'<div class="{_CLASS}"><style>{_style()}</style>{self.body}</div>'

    def __repr__(self) -> str:
        return self._text or f"{self.title}: a notebook draws it; `.save(path)` writes it as HTML"

    def save(self, path: Path | str) -> Path:
        """Write an HTML file that needs no network, and return its path."""
        place = Path(path)
        write_text(place, _PAGE.format(title=escape(self.title), body=self._repr_html_()))
        return place


@functools.cache
def _style() -> str:
    """Return the report's style, applied below a view alone; a notebook has a style of its own."""
    style = files("orchestrator.report").joinpath("style.css").read_text("utf-8")
    style = re.sub(r"(?m)^(\s*):root\b", r"\1:scope", style)
    style = re.sub(r"(?m)^(\s*)body\b", r"\1:scope", style)
    return f"@scope (.{_CLASS}) {{\n{style}\n}}"
