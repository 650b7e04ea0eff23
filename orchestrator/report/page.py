"""The page: sections from views, one HTML file that needs no network."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup, escape

from orchestrator.report import audit, data, models, overview, trust
from orchestrator.report.load import Run, load, number

SECTIONS: tuple[tuple[str, str, Callable[[Run], dict[str, Any]]], ...] = (
    ("result", "Result", overview.result),
    ("warnings", "What to worry about", overview.worries),
    ("audit", "The audit of the data", audit.audit),
    ("certificate", "Certificate", trust.certificate),
    ("board", "Public and private", trust.board),
    ("hypotheses", "Hypotheses", overview.hypotheses),
    ("selection", "Selection", overview.selection),
    ("confusion", "Where it errs", models.confusion),
    ("classes", "Scores per class", models.classes),
    ("agreement", "Agreement of the members", models.agreement),
    ("search", "What the settings did", models.search),
    ("curves", "Learning curves", models.curves),
    ("trials", "Trials", models.trials),
    ("distributions", "The data", data.distributions),
    ("preparation", "Preparation", data.preparation),
    ("provenance", "How this was run", data.provenance),
)
"""Anchor and name of the template's macro, heading, and the function that gathers what it shows."""
AUDIT = ("warnings", "audit", "distributions")
"""The sections of an audit without a run."""
CERTIFICATE = ("certificate", "board")
"""Sections that make a page of their own, to be handed on without the rest."""


def build(run_dir: Path) -> Path:
    """Write `<run_dir>/report/index.html` from the files of a run and return its path; the certificate beside it.

    Missing or unreadable files give a sentence in the page.
    """
    run, folder = load(run_dir), run_dir / "report"
    if run.certificate:
        _write(render(run, CERTIFICATE), folder / "certificate.html")
    return _write(render(run), folder / "index.html")


def build_audit(folder: Path) -> Path:
    """Write `<folder>/index.html` from audit.json and folds.parquet and return its path."""
    run = dataclasses.replace(load(folder), missing=())  # nothing was to be trained
    head = {**overview.head(run), "state": "AUDIT"}
    return _write(render(run, AUDIT, head), folder / "index.html")


def _write(html: str, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    beside.write_bytes(html.encode("utf-8", "backslashreplace"))
    beside.replace(place)
    return place


def render(
    run: Run, wanted: tuple[str, ...] | None = None, head: dict[str, Any] | None = None
) -> str:
    """Return the page as HTML, all of its sections or those that are wanted."""
    environment = _environment()
    macros = environment.get_template("sections.html.j2").make_module()
    sections = [
        (anchor, title, _draw(getattr(macros, anchor), view, run))
        for anchor, title, view in SECTIONS
        if wanted is None or anchor in wanted
    ]
    script = environment.get_template("page.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        head=head or overview.head(run),
        sections=[section for section in sections if section[2]],
        style=Markup(environment.get_template("style.css").render()),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        script_hash=f"sha256-{digest}",
    )


def _draw(macro: Any, view: Callable[[Run], dict[str, Any]], run: Run) -> Markup:
    """Fill one section; a fault in it becomes its text, for the report is the last stage and must not cost a run."""
    try:
        return Markup(macro(view(run))).strip()  # noqa: S704 - the macro escapes what it shows
    except Exception as error:  # noqa: BLE001
        return Markup(
            '<p class="note">This part could not be drawn ({}: {}); the files of the run hold the numbers.</p>'
        ).format(type(error).__name__, error)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.report", "."),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    environment.filters |= {
        "num": num,
        "percent": percent,
        "duration": duration,
        "count": count,
        "signed": signed,
        "p_value": p_value,
    }
    return environment


def visible(value: Any) -> Any:
    """Spell out what a name may hide: control and direction characters, lone surrogates."""
    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    if all(
        char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs"} for char in value
    ):
        return value
    spelled = "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs"}
        else f"\\u{ord(char):04x}"
        for char in value
    )
    return escape(spelled)


def num(value: Any, digits: int = 3) -> str:
    """Format a number with a fixed number of digits; a dash where there is none."""
    found = number(value)
    return "–" if found is None else f"{found:.{digits}f}".replace("-", "−")


def signed(value: Any, digits: int = 3) -> str:
    """Format a difference with its sign."""
    found = number(value)
    return "–" if found is None else f"{found:+.{digits}f}".replace("-", "−")


def p_value(value: Any) -> str:
    """Format a p value; no p is 0."""
    found = number(value)
    return "<0.001" if found is not None and found < 0.001 else num(found)


def percent(value: Any, digits: int = 0) -> str:
    """Format a share."""
    found = number(value)
    return "–" if found is None else f"{found:.{digits}%}".replace("%", " %")


def count(value: Any) -> str:
    """Format a whole number with thin spaces between thousands."""
    found = number(value)
    return "–" if found is None else f"{found:,.0f}".replace(",", "\u202f")


def duration(value: Any) -> str:
    """Format seconds as a person says them."""
    found = number(value)
    if found is None:
        return "–"
    if found < 60:
        return f"{found:.1f} s" if found < 10 else f"{found:.0f} s"
    minutes, seconds = divmod(round(found), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
