"""What the board can ask for: stop, cancel, resume, submit. Each refuses with a sentence."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import FormData, UploadFile

from data_prep.files import write_text
from orchestrator.base.errors import SpecError, UserError
from orchestrator.board.live_run_state import LiveRun, LiveTrial
from orchestrator.board.run_cache import Hub
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.report.command_text.plans_and_runs import plan_lines
from orchestrator.run import control
from orchestrator.run.driver import detach, start_driver
from orchestrator.spec.load import read
from orchestrator.spec.models import Experiment
from orchestrator.stages import STAGES
from orchestrator.store.ledger import is_live

_MAX_SPEC_BYTES = 2**20
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def stop(run: LiveRun, trial: LiveTrial) -> None:
    """Ask a running trial to stop.

    Raises:
        UserError: the run is not live, or the trial has ended.
    """
    control.require_live(run.paths)
    if trial.status:
        raise UserError(
            f"trial {trial.trial_id}: a running trial was required, it is {trial.status}"
        )
    control.request_stop(run.paths, trial.trial_id)


def cancel(run: LiveRun) -> None:
    """Ask a live run to end.

    Raises:
        UserError: the run is not live.
    """
    control.cancel(run.paths, timeout_s=0.0)


def resume(run: LiveRun) -> None:
    """Go on with a run in a process of its own.

    Raises:
        UserError: the run is live, or the process ended with an error before it drove the run.
    """
    paths = run.paths
    if is_live(paths.root):
        raise UserError(f"run {paths.run_id}: a stopped run was required, it is live")
    start_driver(paths, ["resume", paths.run_id, "--store", str(paths.store)])


@dataclass(frozen=True)
class Upload:
    """A spec that was sent to the board."""

    name: str  # of the file
    text: str
    base: Path  # the folder that its relative paths start from


@dataclass(frozen=True)
class Checked:
    """What is known of an uploaded spec: its problems, or its plan."""

    problems: str = ""
    plan: Plan | None = None
    lines: tuple[str, ...] = ()


async def read_upload(form: FormData, base: Path) -> Upload:
    """Return the spec of a form: a file, or a text.

    Args:
        form: file or text, name, and the folder that relative paths start from.
        base: that folder where the form names none; a relative one starts here.

    Raises:
        UserError: it is none, too long, or no UTF-8, or the folder does not exist.
    """
    folder = base / str(form.get("base") or ".")
    if not folder.is_dir():
        raise UserError(f"a folder was required to start relative paths from, found none: {folder}")
    sent = form.get("file")
    text = form.get("text")
    name = form.get("name")
    if isinstance(sent, UploadFile) and sent.filename:
        raw = await sent.read(_MAX_SPEC_BYTES + 1)
        name = sent.filename
    else:
        raw = text.encode("utf-8", "replace") if isinstance(text, str) else b""
    if not raw.strip():
        raise UserError("a spec was required, found nothing; choose a file or paste its text")
    if len(raw) > _MAX_SPEC_BYTES:
        raise UserError(f"a spec of at most {_MAX_SPEC_BYTES} bytes was required, it is longer")
    try:
        decoded = raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise UserError("a spec in UTF-8 was required, found other bytes") from None
    return Upload(name if isinstance(name, str) and name else "spec.yaml", decoded, folder)


def check(hub: Hub, upload: Upload) -> Checked:
    """Return the problems of a spec, or what it would run."""
    try:
        experiment = _read(upload)
        plan = make_plan(experiment, hub.store, STAGES)
    except UserError as error:
        return Checked(problems=str(error))
    return Checked(plan=plan, lines=tuple(plan_lines(plan)))


def submit(hub: Hub, upload: Upload) -> str:
    """Start a run of a spec in a process of its own and return the run's id.

    Raises:
        UserError: the spec has problems, or the process ended before it drove the run.
    """
    experiment = _read(upload)
    digest = hashlib.sha256(upload.text.encode()).hexdigest()[:8]
    place = hub.store.root / "specs" / f"{experiment.spec.name}-{digest}.yaml"
    write_text(place, upload.text)
    arguments = [
        "submit",
        str(place),
        "--base",
        str(upload.base.resolve()),
        "--store",
        str(hub.store.root),
    ]
    return detach(experiment, hub.store, arguments)


def _read(upload: Upload) -> Experiment:
    """Read a spec under its own name, so that its problems are told as for a file.

    Code of the user is refused: a page is no place to have read it.
    """
    name = _NAME.sub("_", Path(upload.name).name)[-100:] or "spec.yaml"
    with tempfile.TemporaryDirectory(prefix="board-") as folder:
        path = Path(folder) / name
        path.write_text(upload.text, encoding="utf-8")
        try:
            return read(path, base=upload.base, allow_code=False)
        except SpecError as error:
            raise SpecError(str(error).replace(str(path), name)) from None
