"""Submit a spec from Python: the run goes on in a process of its own, and its progress is shown."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_prep.files import write_text
from orchestrator.api.html import View
from orchestrator.api.run_handle import OpenRun
from orchestrator.base.errors import SpecError, UserError
from orchestrator.report.command_text.plans_and_runs import status_lines
from orchestrator.report.command_text.run_status import status_view
from orchestrator.run.driver import detach
from orchestrator.spec.load import read
from orchestrator.store.ledger import is_live
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.store_address import default_place, open_to_read

_SHOW_EVERY_S = 1.0


def submit(
    spec: str | Path | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    store: str | Path | None = None,
    wait: bool = True,
    allow_code: bool = False,
) -> OpenRun:
    """Run an experiment, or go on with it, and return its run.

    The run has a process of its own: an interrupt of the notebook leaves it running.

    Args:
        spec: the path of a spec, or its content; relative paths in a content start from the
            current folder.
        overrides: path -> value, as `--set`.
        store: the folder of the store or the URL of a bucket; $ORCHESTRATOR_STORE or ./runs-store by default.
        wait: show the progress until the run ends; False returns at once.
        allow_code: let the run use code that the spec names.

    Raises:
        SpecError: the spec has problems.
        UserError: the run failed.
    """
    opened = open_to_read(default_place() if store is None else store)
    root = opened.root.resolve()
    settings = [f"{name}={json.dumps(value)}" for name, value in (overrides or {}).items()]
    base = Path.cwd()
    if isinstance(spec, Mapping):
        path = _kept(spec, settings, base, root)
    else:
        path = Path(spec).resolve()
        base = path.parent
    experiment = read(path, settings, base=base, allow_code=allow_code)
    arguments = ["submit", str(path), "--base", str(base), "--store", opened.name]
    for setting in settings:
        arguments += ["--set", setting]
    if allow_code:
        arguments.append("--allow-code")
    paths = RunPaths(root / "runs" / detach(experiment, opened, arguments))
    run = OpenRun(paths)
    if wait:
        _follow(paths)
        if run.state != "SUCCEEDED":
            raise UserError(
                f"run {run.run_id}: it ended as {run.state}; see {paths.driver_log} and "
                f"`python -m orchestrator status {run.run_id} --store {opened.name}`"
            )
    return run


def _kept(spec: Mapping[str, Any], settings: list[str], base: Path, root: Path) -> Path:
    """Keep the content of a spec in the store, after it was checked, and return its path."""
    text = json.dumps(dict(spec), indent=1, ensure_ascii=False) + "\n"  # JSON is YAML
    with tempfile.TemporaryDirectory(prefix="submit-") as folder:
        draft = Path(folder) / "spec.yaml"
        draft.write_text(text, encoding="utf-8")
        try:
            name = read(draft, settings, base=base).spec.name
        except SpecError as error:
            raise SpecError(str(error).replace(str(draft), "the spec")) from None
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    place = root / "specs" / f"{name}-{digest}.yaml"
    write_text(place, text)
    return place


def _follow(paths: RunPaths) -> None:
    """Show how far a run is, until its driver leaves it."""
    show = _shower()
    while is_live(paths.root):
        show(status_lines(status_view(paths.root)))
        time.sleep(_SHOW_EVERY_S)
    show(status_lines(status_view(paths.root)))


def _shower() -> Callable[[list[str]], None]:
    """Return what shows the state of a run: one output that changes, or lines as they are new."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import display  # noqa: PLC0415

        handle = display(View("Progress", Markup("")), display_id=True)

        def redraw(lines: list[str]) -> None:
            handle.update(View("Progress", Markup("<pre>{}</pre>").format("\n".join(lines))))

        return redraw
    shown: set[str] = set()

    def print_new(lines: list[str]) -> None:
        for line in lines[1:]:
            is_of_stage = line.startswith("  ") and " epoch " not in line
            if is_of_stage and line not in shown:
                shown.add(line)
                sys.stderr.write(f"{line}\n")

    return print_new
