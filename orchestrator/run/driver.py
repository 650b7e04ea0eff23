"""Run a plan: one driver per run, stage after stage, every outcome in the ledger."""

from __future__ import annotations

import dataclasses
import getpass
import io
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.markup import escape
from ruamel.yaml import YAML

from data_prep.catalog.label_schema import Schema
from data_prep.errors import MachineError
from data_prep.files import write_json, write_text
from orchestrator.base.console import Reporter
from orchestrator.base.errors import INTERRUPTED, SpecError, UserError
from orchestrator.base.wording import printable
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage import Output, Stage
from orchestrator.run.control import Listener
from orchestrator.run.prometheus_metrics import RunMetrics
from orchestrator.search.trial_tables import best_trial
from orchestrator.spec.load import read as read_spec
from orchestrator.spec.models import Experiment
from orchestrator.stages import STAGES
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.prepare import Prepared
from orchestrator.store.artifacts import Store, git_commit, packages
from orchestrator.store.event_types import RunEnded, RunResumed, RunStarted, StageEnded
from orchestrator.store.ledger import LOCK, Ledger, LedgerLocked, is_live, read
from orchestrator.store.run_dir import RunPaths, with_files
from orchestrator.store.run_files.records import as_record
from orchestrator.store.run_files.selection import Selection

if TYPE_CHECKING:
    from orchestrator.cluster.queue import Turn

LOADED_TO_PREPARE = {
    "crop_face": ("torch", "deepface.modules.detection", "deepface.modules.modeling"),
    "fastmtcnn": ("facenet_pytorch",),
}
"""What the fork server imports for a step or detector. Not onnxruntime and pyarrow: they start threads."""
_TRACKER_WAIT_S = 30.0
_FOLLOW_EVERY_S = 0.5
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Options:
    """How to run; changes no result."""

    address: str | None = None
    insecure: bool = False
    smoke: bool = False
    allow_download: bool = False
    max_runs: int | None = None  # at a time on the cluster
    allow_code: bool = False


def submit(experiment: Experiment, store: Store, options: Options) -> int:
    """Run an experiment to its end and return the exit code of the contract.

    A finished run returns at once, a live one is followed, a broken one is gone on with.
    """
    from orchestrator.run import tracking  # noqa: PLC0415

    reporter = Reporter()
    _require_code(experiment, options)
    _refuse_missing_gpus(experiment, options)
    tracking.require(experiment.spec.track)
    plan = make_plan(experiment, store, STAGES)
    paths = RunPaths(store.root / "runs" / plan.run_id)
    if (paths.read_json("summary") or {}).get("state") == "SUCCEEDED":
        for stage in plan.stages:
            reporter.outcome(stage.name, "CACHED", stage.why)
        _say_results(with_files(paths), reporter)
        return 0
    if options.smoke and (code := _smoke(experiment, store, options, reporter)):
        return code
    _make_folder(paths)
    try:
        with store.driving(paths.root) as on_commit, Ledger(paths.root) as ledger:
            ledger.on_commit = on_commit
            return _drive(experiment, store, plan, paths, ledger, options, reporter)
    except LedgerLocked:
        try:
            reporter.say(f"run {plan.run_id} is being driven by another process; following it")
            return follow(paths, reporter)
        except KeyboardInterrupt:
            reporter.say(
                f"no longer following; run {plan.run_id} goes on, `cancel {plan.run_id}` ends it"
            )
            return INTERRUPTED


def resume(paths: RunPaths, store: Store, options: Options) -> int:
    """Go on with a run from its resolved.yaml.

    Raises:
        UserError: it is live.
    """
    if is_live(paths.root):
        raise UserError(
            f"run {paths.run_id}: a stopped run was required, it is live; "
            f"follow it with `status {paths.run_id}`"
        )
    if not paths.resolved.is_file():
        raise UserError(
            f"run {paths.run_id}: {paths.resolved} was required, found none; submit the spec again"
        )
    experiment = dataclasses.replace(
        read_spec(paths.resolved, allow_code=options.allow_code),
        text=paths.spec.read_text(encoding="utf-8"),
    )
    plan = make_plan(experiment, store, STAGES)
    if plan.run_id != paths.run_id:
        raise UserError(
            f"run {paths.run_id}: the data and code of its start were required, they changed "
            f"(it would now be {plan.run_id}); submit the spec again, what is unchanged is reused"
        )
    return submit(experiment, store, options)


def detach(experiment: Experiment, store: Store, arguments: list[str]) -> str:
    """Start `submit` in another process, wait until it drives the run, and return the run's id.

    Raises:
        UserError: it ended with an error before that.
    """
    plan = make_plan(experiment, store, STAGES)
    paths = RunPaths(store.root / "runs" / plan.run_id)
    _make_folder(paths)
    start_driver(paths, [word for word in arguments if word != "--detach"])
    return plan.run_id


def _make_folder(paths: RunPaths) -> None:
    """Make the folder of a run.

    Raises:
        UserError: the store cannot be written.
    """
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        (paths.root / LOCK).open("ab").close()
    except OSError as error:
        raise UserError(
            f"{paths.store}: a store that can be written was required, found: {error.strerror}; "
            "name another folder with --store or ORCHESTRATOR_STORE, or mend its rights"
        ) from None


def start_driver(paths: RunPaths, arguments: list[str]) -> None:
    """Start a command in a process of its own, and wait until it drives the run or has ended.

    Raises:
        UserError: it ended with an error before that.
    """
    command = [sys.executable, "-m", "orchestrator", *arguments]
    with paths.driver_log.open("ab") as log:
        driver = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    while driver.poll() is None and not (paths.events.is_file() and is_live(paths.root)):
        time.sleep(_LOOK_EVERY_S)
    if driver.returncode:
        raise UserError(
            f"run {paths.run_id}: its driver ended with exit code {driver.returncode}; "
            f"see {paths.driver_log}"
        )


def _require_code(experiment: Experiment, options: Options) -> None:
    """Refuse code of the user that was not allowed, or that is not what the spec pins.

    Raises:
        SpecError: the command lacks `--allow-code`, or a file is not there.
    """
    if experiment.lost_code:
        names = ", ".join(sorted(set(experiment.lost_code)))
        raise SpecError(
            f"{names}: the version that the spec names by its sha256 was required beside the spec, "
            "found none; remove sha256 from the spec to take the file as it is"
        )
    if experiment.code and not options.allow_code:
        names = ", ".join(sorted(experiment.code))
        raise SpecError(
            f"{names} is code that runs with your rights: read it, then give --allow-code"
        )


def _refuse_missing_gpus(experiment: Experiment, options: Options) -> None:
    """Refuse GPUs and cores that a local run cannot have; Tune would wait for them for ever."""
    from orchestrator.cluster.connection import local_gpus  # noqa: PLC0415

    resources = experiment.spec.resources
    wanted = max(resources.per_trial.least_gpu, resources.per_prep_worker.gpu)
    if options.address is None and wanted > local_gpus():
        raise SpecError(
            f"resources: gpu: {wanted:g} was asked for, this machine has {local_gpus()} GPU(s); "
            "set gpu: 0 or auto, or attach to a cluster with --address"
        )
    cpus = os.cpu_count() or 1
    wanted_cpus = max(resources.per_trial.cpu, resources.per_prep_worker.cpu)
    if options.address is None and wanted_cpus > cpus:
        raise SpecError(
            f"resources: cpu: {wanted_cpus:g} was asked for, this machine has {cpus} cores; "
            f"set cpu: {cpus} or less"
        )


def _smoke(experiment: Experiment, store: Store, options: Options, reporter: Reporter) -> int:
    """Send one step of every variant through the whole path, as a run of its own."""
    spec = experiment.spec
    changes: list[str] = [f"name={spec.name[:56]}-smoke"]
    if spec.search:
        changes.append("search.trials=1")
    if spec.confirm:
        changes += [
            "confirm.finalists=1",
            "confirm.folds=2",
            f"confirm.seeds=[{spec.confirm.seeds[0]}]",
        ]
    source = store.root / "smoke" / f"{spec.name}.yaml"
    source.parent.mkdir(parents=True, exist_ok=True)
    dump_yaml(_one_step(experiment.resolved()), source)
    reporter.say("smoke: one step of every variant through the whole path")
    smoke = read_spec(source, changes, check_roots=False)
    code = submit(
        dataclasses.replace(smoke, code=experiment.code, lost_code=()),
        store,
        dataclasses.replace(options, smoke=False),
    )
    reporter.say("smoke: passed" if code == 0 else "smoke: failed, the real run was not started")
    return code


def _one_step(resolved: dict[str, Any]) -> dict[str, Any]:
    """Change a resolved spec to trainings of one step, wherever it names their length."""
    search = resolved.get("search") or {}
    for space in (
        search.get("space") or {},
        *(search.get("variant_spaces") or {}).values(),
        *search.get("start", []),
    ):
        space.pop("train.duration", None)
    if search:
        search["start"] = [point for point in search.get("start", []) if point]
    resolved["train"]["duration"] = "1 steps"
    for overrides in resolved["variants"].values():
        overrides["train.duration"] = "1 steps"
    return resolved


@dataclass
class _Progress:
    """The outcomes and outputs of the stages so far."""

    outcomes: dict[str, str] = field(default_factory=dict)  # by stage
    outputs: dict[str, Output] = field(default_factory=dict)  # of the stages that succeeded


def _drive(
    experiment: Experiment,
    store: Store,
    plan: Plan,
    paths: RunPaths,
    ledger: Ledger,
    options: Options,
    reporter: Reporter,
) -> int:
    from orchestrator.run import tracking  # noqa: PLC0415

    began = time.monotonic()
    listener = Listener(paths)
    spent_s = float((paths.read_json("summary") or {}).get("wall_s", 0.0))
    _begin(experiment, plan, paths, ledger)
    for name in experiment.code:
        store.share(paths.code / name)
    reporter.say(f"run [bold]{plan.run_id}[/]  in {escape(store.name)}/runs/{plan.run_id}")
    tracker = tracking.start(paths.root)
    progress = _Progress()
    state = "FAILED"
    try:
        _require_weights(experiment, allow_download=options.allow_download)
        with (
            _fork_server(experiment, options) as fork_server,
            _connect(experiment, options, paths, reporter) as resources,
            _turn(experiment, options, paths, reporter) as turn,
            _metrics(experiment, plan, store, ledger, progress),
        ):
            env = Env(
                experiment,
                plan.files,
                store,
                paths,
                ledger,
                reporter,
                *resources,
                fork_server,
                turn.must_yield if turn else lambda: False,
            )
            if _run_stages(env, progress, turn):
                state = "SUCCEEDED"
    except KeyboardInterrupt:
        state = "CANCELLED" if listener.cancelled else "INTERRUPTED"
        raise
    finally:
        listener.close()
        if state != "SUCCEEDED":
            _keep_results(paths, progress.outputs, reporter)
        ledger.append(RunEnded(state=state), commit=True)
        wall_s = spent_s + time.monotonic() - began
        _write_summary(paths, ledger, progress, state, wall_s)
        missing = tracker.finish(_TRACKER_WAIT_S if state == "SUCCEEDED" else 2.0)
        if missing:
            reporter.say(f"tracking: {escape(missing)}")
    if state != "SUCCEEDED":
        return 1
    _say_results(paths, reporter)
    for line in tracking.next_steps(paths.root, experiment.spec.track):
        reporter.say(escape(line))
    return 0


def _begin(experiment: Experiment, plan: Plan, paths: RunPaths, ledger: Ledger) -> None:
    """Write what is known of a run before its first stage."""
    paths.summary.unlink(missing_ok=True)
    paths.spec.write_text(experiment.text, encoding="utf-8")
    dump_yaml(experiment.resolved(), paths.resolved)
    write_json(paths.plan, plan.to_json())
    for name, file in experiment.code.items():
        if file != paths.code / name:  # a resumed run reads its own copies
            paths.code.mkdir(exist_ok=True)
            shutil.copyfile(file, paths.code / name)
    schema = Schema.of(experiment.spec.data.labels)
    is_resumed = bool(ledger.state.trials or ledger.state.stages)
    event_type = RunResumed if is_resumed else RunStarted
    event = event_type(
        run_id=plan.run_id,
        key=plan.run_key,
        git_commit=git_commit(),
        packages=packages(),
        overrides=experiment.overrides,
        labels={name: list(classes) for name, classes in schema.classes.items()},
    )
    ledger.append(event, commit=True)


@contextmanager
def _fork_server(experiment: Experiment, options: Options) -> Iterator[str | None]:
    """Start the process that trainings are forked from; it imports while the catalog is read.

    The workers of another machine's cluster cannot reach it.
    """
    from orchestrator.cluster.connection import is_local  # noqa: PLC0415
    from orchestrator.cluster.fork_server import start_fork_server  # noqa: PLC0415
    from orchestrator.search.trial_process import TRAINING_MODULES  # noqa: PLC0415

    if options.address is not None and not is_local(options.address):
        yield None
        return
    used = set()
    for arm in experiment.arms.values():
        for step in arm.prep.steps:
            used |= {step.name, getattr(step, "detector", "")}
    to_prepare = [
        name for key in LOADED_TO_PREPARE if key in used for name in LOADED_TO_PREPARE[key]
    ]
    threads = max(1, int(experiment.spec.resources.per_trial.cpu))
    with start_fork_server(
        [*to_prepare, *TRAINING_MODULES, "orchestrator.search.trial_process"], threads=threads
    ) as address:
        yield address


class _ClusterSize(NamedTuple):
    cpus: float
    gpus: float


@contextmanager
def _connect(
    experiment: Experiment, options: Options, paths: RunPaths, reporter: Reporter
) -> Iterator[_ClusterSize]:
    """Connect to a cluster that can run a trial and a worker of the preparation."""
    from orchestrator.cluster.connection import connect  # noqa: PLC0415

    resources = experiment.spec.resources
    with connect(options.address, insecure=options.insecure, may_exit=True) as cluster:
        if cluster.dashboard_url:
            reporter.say(f"dashboard {cluster.dashboard_url}")
        if cluster.job_page:
            write_text(paths.dashboard, cluster.job_page)
        if cluster.dashboard_problem:
            problem = escape(cluster.dashboard_problem)
            reporter.say(f"Ray's dashboard did not come up, the run goes on without: {problem}")
        cluster.require(
            cpu=max(resources.per_trial.cpu, resources.per_prep_worker.cpu),
            gpu=max(resources.per_trial.least_gpu, resources.per_prep_worker.gpu),
        )
        yield _ClusterSize(cluster.resources.get("CPU", 1.0), cluster.resources.get("GPU", 0.0))


@contextmanager
def _turn(
    experiment: Experiment, options: Options, paths: RunPaths, reporter: Reporter
) -> Iterator[Turn | None]:
    """Wait for the run's turn on a cluster that others use too; a local one has no queue."""
    if options.address is None:
        yield None
        return
    from orchestrator.cluster.jobs import USER_VARIABLE  # noqa: PLC0415
    from orchestrator.cluster.queue import GO, YIELD, Answer, Place, Turn  # noqa: PLC0415

    def show(answer: Answer) -> None:
        if answer.word == GO:
            paths.pending.unlink(missing_ok=True)
        elif answer.word == YIELD:
            reporter.say("a run of a higher priority waits: this one goes on after it")
        else:
            write_text(paths.pending, f"{answer.n_ahead} ahead")
            reporter.say(f"pending: {answer.n_ahead} ahead")

    place = Place(
        paths.run_id,
        os.environ.get(USER_VARIABLE) or getpass.getuser(),
        experiment.spec.resources.priority,
        time.time(),
        max_runs=options.max_runs,
    )
    with Turn(place, show) as turn:
        yield turn


@contextmanager
def _metrics(
    experiment: Experiment, plan: Plan, store: Store, ledger: Ledger, progress: _Progress
) -> Iterator[None]:
    """Export metrics of the run while it is connected to a cluster."""
    search = experiment.spec.search
    metrics = RunMetrics(
        plan.run_id,
        ledger.state,
        n_planned=sum(plan.trials.values()),
        count_quarantined=lambda: _n_quarantined(progress.outputs),
        store=store.root,
        n_folds=search.folds if search else None,
    )
    ledger.on_append = metrics.take
    try:
        yield
    finally:
        ledger.on_append = None


def _run_stage(stage: Stage, env: Env, progress: _Progress, turn: Turn | None) -> Output:
    """Run a stage; where it yields to another run, wait and run it on from the ledger."""
    from orchestrator.cluster.queue import Yielded  # noqa: PLC0415

    while True:
        try:
            return stage.run(env, **{name: progress.outputs[name] for name in stage.reads})
        except Yielded:
            if turn is None:
                raise
            turn.wait_again()


def _run_stages(env: Env, progress: _Progress, turn: Turn | None = None) -> bool:
    """Run every stage in order; after a failure the rest is BLOCKED.

    Returns:
        True if every stage succeeded.
    """
    has_failed = False
    for stage in STAGES:
        began = time.monotonic()
        if has_failed:
            outcome = "BLOCKED"
            note = "an earlier stage failed"
        else:
            try:
                output = _run_stage(stage, env, progress, turn)
            except Exception as error:  # noqa: BLE001 - whatever a stage raises is its outcome
                has_failed = True
                outcome = "FAILED"
                note = _failure_note(env.paths, error)
            else:
                progress.outputs[stage.name] = output
                outcome = output.outcome
                note = output.note
        wall_s = time.monotonic() - began
        progress.outcomes[stage.name] = outcome
        event = StageEnded(stage=stage.name, outcome=outcome, wall_s=round(wall_s, 3), note=note)
        env.ledger.append(event, commit=True)
        env.console.outcome(stage.name, outcome, note, wall_s)
    return not has_failed


def _keep_results(paths: RunPaths, outputs: Mapping[str, Any], reporter: Reporter) -> None:
    """Write the joined files of a run that ended before its report stage wrote them."""
    if "confirm" not in outputs:
        return
    from orchestrator.stages.report import write_joined  # noqa: PLC0415

    try:
        write_joined(paths, outputs["confirm"], outputs.get("select"), outputs.get("vote"))
    except OSError as error:
        reporter.say(f"predictions.parquet and selection.json were not written: {error}")


def _failure_note(paths: RunPaths, error: Exception) -> str:
    """Write the traceback to a file, and return a line about the error."""
    paths.error.write_text(traceback.format_exc(), encoding="utf-8")
    is_expected = isinstance(error, UserError | MachineError)
    text = str(error) if is_expected else f"{type(error).__name__}: {error}"
    return f"{text}; details in {paths.error}"


def _n_quarantined(outputs: Mapping[str, Output]) -> int:
    """Count the photos that could not be read or prepared."""
    samples: set[str] = set()
    for output in outputs.values():
        if isinstance(output, Catalog | Prepared):
            samples |= set(output.quarantined)
    return len(samples)


def _require_weights(experiment: Experiment, *, allow_download: bool) -> None:
    """Find and verify every weight file before Ray starts; workers download nothing."""
    from data_prep.weights.cache import fetch_all, require  # noqa: PLC0415
    from data_prep.weights.registry import WeightsError, known  # noqa: PLC0415

    wanted = set(experiment.backbones())
    for arm in experiment.arms.values():
        wanted |= {step.model for step in arm.prep.steps if step.name == "remove_background"}
        wanted |= {step.detector for step in arm.prep.steps if step.name == "crop_face"}
    try:
        for name in sorted(wanted & set(known())):
            if allow_download:
                fetch_all([name], allow_unpinned=True)
            else:
                require(name)
        for name in sorted(wanted - set(known())):
            from data_prep.weights import hub  # noqa: PLC0415 - imports torch and timm

            (hub.fetch if allow_download else hub.require)(name)
    except WeightsError as error:
        raise UserError(str(error)) from None


def _write_summary(
    paths: RunPaths, ledger: Ledger, progress: _Progress, state: str, wall_s: float
) -> None:
    counts = {"complete": 0, "pruned": 0, "failed": 0}
    for trial in ledger.state.trials.values():
        if trial.status:
            counts[trial.status.lower()] += 1
    selection = as_record(Selection, paths.read_json("selection"))
    summary = {
        "run_id": paths.run_id,
        "state": state,
        "stages": {stage.name: progress.outcomes.get(stage.name, "BLOCKED") for stage in STAGES},
        "trials": counts,
        "quarantined": _n_quarantined(progress.outputs),
        "best": best_trial(ledger.state),
        "members": list(selection.members),
        "wall_s": round(wall_s, 1),
    }
    write_json(paths.summary, summary)


def _say_results(paths: RunPaths, reporter: Reporter) -> None:
    from orchestrator.report.command_text.result_tables import (  # noqa: PLC0415
        audit_lines,
        ensemble_lines,
        render_results,
    )

    reporter.say("")
    sys.stdout.write(printable(render_results(paths.root, "table")))
    sys.stdout.flush()
    for line in [*ensemble_lines(paths.root), *audit_lines(paths.root)]:
        reporter.say(escape(line))
    reporter.say(f"report: {escape(str(paths.report))}")


def follow(paths: RunPaths, reporter: Reporter) -> int:
    """Show a run that another process drives, read-only, until it ends; return its exit code."""
    seen = 0
    while True:
        live = is_live(paths.root)
        events = read(paths.events)
        for event in events[seen:]:
            if isinstance(event, StageEnded):
                reporter.outcome(event.stage, event.outcome, event.note or "", event.wall_s)
        seen = len(events)
        if not live:
            break
        time.sleep(_FOLLOW_EVERY_S)
    state = (paths.read_json("summary") or {}).get("state", "INTERRUPTED")
    reporter.say(f"run {paths.run_id}: {state}")
    return {"SUCCEEDED": 0, "INTERRUPTED": INTERRUPTED, "CANCELLED": INTERRUPTED}.get(state, 1)


def dump_yaml(value: Any, path: Path) -> None:
    """Write plain data as YAML."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump(json.loads(json.dumps(value)), text)
    write_text(path, text.getvalue())
