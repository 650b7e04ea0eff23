"""Run a plan: one driver per run, stage after stage, every outcome in the ledger."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from ruamel.yaml import YAML

from data_prep.catalog.label_schema import Schema
from data_prep.errors import MachineError
from data_prep.files import write_json, write_text
from orchestrator.base.console import Reporter
from orchestrator.base.errors import INTERRUPTED, UserError
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage import Output, Stage
from orchestrator.run.closing import follow, keep_results, n_quarantined, say_results, write_summary
from orchestrator.run.cluster_session import connect_run, start_server, wait_for_turn
from orchestrator.run.control import Listener
from orchestrator.run.prerequisites import refuse_missing_gpus, require_code, require_weights
from orchestrator.run.prometheus_metrics import RunMetrics
from orchestrator.spec.load import read as read_spec
from orchestrator.spec.models import Experiment
from orchestrator.stages import STAGES
from orchestrator.store.artifacts import Store, git_commit, packages
from orchestrator.store.event_types import RunEnded, RunResumed, RunStarted, StageEnded
from orchestrator.store.ledger import LOCK, Ledger, LedgerLocked, is_live
from orchestrator.store.run_dir import RunPaths, with_files

if TYPE_CHECKING:
    from orchestrator.cluster.queue import Turn

_TRACKER_WAIT_S = 30.0
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
    require_code(experiment, is_allowed=options.allow_code)
    if options.address is None:
        refuse_missing_gpus(experiment)
    tracking.require(experiment.spec.track)
    plan = make_plan(experiment, store, STAGES)
    paths = RunPaths(store.root / "runs" / plan.run_id)
    if (paths.read_json("summary") or {}).get("state") == "SUCCEEDED":
        for stage in plan.stages:
            reporter.outcome(stage.name, "CACHED", stage.why)
        say_results(with_files(paths), reporter)
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

    address = options.address
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
        require_weights(experiment, allow_download=options.allow_download)
        with (
            start_server(experiment, address) as server,
            connect_run(
                experiment, address, paths, reporter, insecure=options.insecure
            ) as resources,
            wait_for_turn(experiment, address, paths, reporter, max_runs=options.max_runs) as turn,
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
                server,
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
            keep_results(paths, progress.outputs, reporter)
        ledger.append(RunEnded(state=state), commit=True)
        wall_s = spent_s + time.monotonic() - began
        stages = {stage.name: progress.outcomes.get(stage.name, "BLOCKED") for stage in STAGES}
        write_summary(paths, ledger, stages, progress.outputs, state, wall_s)
        missing = tracker.finish(_TRACKER_WAIT_S if state == "SUCCEEDED" else 2.0)
        if missing:
            reporter.say(f"tracking: {escape(missing)}")
    if state != "SUCCEEDED":
        return 1
    say_results(paths, reporter)
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
def _metrics(
    experiment: Experiment, plan: Plan, store: Store, ledger: Ledger, progress: _Progress
) -> Iterator[None]:
    """Export metrics of the run while it is connected to a cluster."""
    search = experiment.spec.search
    metrics = RunMetrics(
        plan.run_id,
        ledger.state,
        n_planned=sum(plan.trials.values()),
        count_quarantined=lambda: n_quarantined(progress.outputs),
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


def _failure_note(paths: RunPaths, error: Exception) -> str:
    """Write the traceback to a file, and return a line about the error."""
    paths.error.write_text(traceback.format_exc(), encoding="utf-8")
    is_expected = isinstance(error, UserError | MachineError)
    text = str(error) if is_expected else f"{type(error).__name__}: {error}"
    return f"{text}; details in {paths.error}"


def dump_yaml(value: Any, path: Path) -> None:
    """Write plain data as YAML."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump(json.loads(json.dumps(value)), text)
    write_text(path, text.getvalue())
