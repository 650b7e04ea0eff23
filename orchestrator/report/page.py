"""The page: sections from views, one HTML file that needs no network."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, ChoiceLoader, Environment, PackageLoader
from markupsafe import Markup, escape

from data_prep.files import atomic_path
from orchestrator.report import (
    audit_section,
    caveats,
    certificate_section,
    data_section,
    diagnosis_section,
    models_section,
    result_section,
    search_section,
)
from orchestrator.report.load import Run, View, load
from orchestrator.store.run_files.records import number

SECTIONS: tuple[tuple[str, str, Callable[[Run], View]], ...] = (
    ("result", "Result", result_section.result),
    ("findings", "Findings", caveats.findings),
    ("audit", "Data audit", audit_section.audit),
    ("certificate", "Certificate", certificate_section.certificate),
    ("board", "Public and private scores", certificate_section.board),
    ("hypotheses", "Hypotheses", result_section.hypotheses),
    ("selection", "Selection", result_section.selection),
    ("confusion", "Confusion matrices", models_section.confusion),
    ("classes", "Scores per class", models_section.classes),
    ("subgroups", "Scores per subgroup", diagnosis_section.subgroups),
    ("suspects", "Likely wrong labels", diagnosis_section.suspects),
    ("gallery", "Photos to look at", diagnosis_section.gallery),
    ("calibration", "Confidence", diagnosis_section.calibration),
    ("agreement", "Agreement of the members", models_section.agreement),
    ("search", "Effect of the settings", search_section.search),
    ("curves", "Learning curves", models_section.curves),
    ("trials", "Trials", models_section.trials),
    ("distributions", "Class distributions", data_section.distributions),
    ("preparation", "Preparation", data_section.preparation),
    ("provenance", "Provenance", data_section.provenance),
)
"""Anchor and name of the template's macro, heading, and the function that gathers what it shows."""
AUDIT = ("findings", "audit", "distributions")
"""The sections of an audit without a run."""
CERTIFICATE = ("certificate", "board")
"""The sections of the page that is handed on without the rest."""


def build(run_dir: Path) -> Path:
    """Write `<run_dir>/report/index.html` from the files of a run and return its path.

    The certificate and the picture `result.svg` are written beside it. A file that is missing or
    cannot be read gives a sentence in the page.
    """
    from orchestrator.report.summaries.picture import picture  # noqa: PLC0415 - it imports this

    run = load(run_dir)
    folder = run_dir / "report"
    _write(picture(run), folder / "result.svg")
    if run.certificate:
        _write(render(run, CERTIFICATE), folder / "certificate.html")
    return _write(render(run), folder / "index.html")


def build_audit(folder: Path) -> Path:
    """Write `<folder>/index.html` from audit.json and folds.parquet and return its path."""
    run = dataclasses.replace(load(folder), missing=())  # nothing was to be trained
    head = dataclasses.replace(result_section.head(run), state="AUDIT")
    return _write(render(run, AUDIT, head), folder / "index.html")


def _write(html: str, place: Path) -> Path:
    with atomic_path(place) as beside:
        beside.write_bytes(html.encode("utf-8", "backslashreplace"))
    return place


def render(
    run: Run, wanted: tuple[str, ...] | None = None, head: result_section.Head | None = None
) -> str:
    """Return the page as HTML, with all sections or with those that are wanted."""
    return fill("page.html.j2", head=head or result_section.head(run), sections=draw(run, wanted))


def fill(template: str, **values: Any) -> str:
    """Return a whole page, with styles and script in it."""
    environment = make_environment()
    scripts = [environment.get_template(f"{name}.js.j2").render() for name in ("page", "downloads")]
    script = "\n".join(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=Markup(environment.get_template("style.css").render()),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{digest}",
        **values,
    )


def draw(run: Run, wanted: tuple[str, ...] | None = None) -> list[tuple[str, str, Markup]]:
    """Return (anchor, heading, body) of all sections, or of those that are wanted.

    A section that has nothing to show is left out.
    """
    macros = make_environment().get_template("sections.html.j2").make_module()
    sections = []
    for anchor, title, view in SECTIONS:
        if wanted is not None and anchor not in wanted:
            continue
        if body := _draw(getattr(macros, anchor), view, run):
            sections.append((anchor, title, body))
    return sections


def _draw(macro: Any, view: Callable[[Run], View], run: Run) -> Markup:
    """Fill one section; an error in it becomes its text, so that no report fails a run."""
    try:
        title = run.score_title
        names: View = {"score_name": title, "Score_name": title[0].upper() + title[1:]}
        names |= {"one": run.words.one, "many": run.words.many}
        return Markup(macro(names | view(run))).strip()  # noqa: S704 - the macro escapes what it shows
    except Exception as error:  # noqa: BLE001
        return Markup(
            '<p class="note">This section could not be drawn ({}: {}); '
            "the files of the run hold its numbers.</p>"
        ).format(type(error).__name__, error)


@functools.cache
def make_environment(*packages: str) -> Environment:
    """Return the templates of the report, and those of other packages, with the same filters."""
    names = (*packages, "orchestrator.report")
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in names]),
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
    spelled = "".join(map(_visible_character, value))
    return value if spelled == value else escape(spelled)


def _visible_character(character: str) -> str:
    is_hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs"}
    if is_hidden and character not in "\n\t":
        return f"\\u{ord(character):04x}"
    return character


def _formatted(value: Any, form: str) -> str:
    """Format a number with a true minus sign; a dash where there is none."""
    finite = number(value)
    return "–" if finite is None else format(finite, form).replace("-", "−")


def num(value: Any, digits: int = 3) -> str:
    """Format a number with a fixed number of digits."""
    return _formatted(value, f"z.{digits}f")


def signed(value: Any, digits: int = 3) -> str:
    """Format a difference with its sign."""
    return _formatted(value, f"+z.{digits}f")


def p_value(value: Any) -> str:
    """Format a p value; no p is 0."""
    finite = number(value)
    return "<0.001" if finite is not None and finite < 0.001 else num(value)


def percent(value: Any, digits: int = 0) -> str:
    """Format a share."""
    return _formatted(value, f".{digits}%").replace("%", " %")


def count(value: Any) -> str:
    """Format a whole number with thin spaces between thousands."""
    return _formatted(value, ",.0f").replace(",", "\u202f")


def duration(value: Any) -> str:
    """Format seconds as a person says them."""
    seconds = number(value)
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"
