"""A study whose trainings take no time: the real trial controller, sampler, scheduler, ledger and Tune over a toy function.

Run as a program it is a driver that can be killed:  python -m tests.orchestrator.search.toy FOLDER [--trials N] ...
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

from orchestrator.base.keys import digest
from orchestrator.search.controller import Finished, Proposal
from orchestrator.search.study import Studies, search_controller
from orchestrator.search.trial import TrialSpec
from orchestrator.search.trial_process import Watch
from orchestrator.spec.search_space import Search
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import PhaseStarted, RunResumed, RunStarted
from orchestrator.store.ledger import Ledger

SPACE = {
    "train.lr": {"float": [1e-4, 1e-1], "log": True},
    "train.head": {"choice": ["single", "deep"]},
    "train.hidden": {"int": [16, 512], "log": True, "when": {"train.head": "deep"}},
}
N_EPOCHS = 9


def score(params, epoch):
    """A curve that saturates; the optimum is a deep head of 128 at lr 0.01."""
    top = 0.9 - 0.1 * abs(math.log10(params["train.lr"]) + 2)
    if params["train.head"] == "deep":
        top += 0.05 - 0.03 * abs(math.log2(params["train.hidden"]) - 7)
    return round(top * (1 - math.exp(-epoch / 3)), 6)


def train(spec, report):
    """Train like the real one: a checkpoint per epoch before the report, an artifact at the end, a note of each epoch."""
    store = Store(Path(spec.store))
    state = store.work_dir("trial", spec.key) / "history.json"
    history = json.loads(state.read_text()) if state.exists() else []
    for epoch, metrics in enumerate(history, 1):
        report(epoch, metrics)
    for epoch in range(len(history) + 1, N_EPOCHS + 1):
        time.sleep(spec.train["epoch_s"])
        history.append({"val_macro_f1": score(spec.params, epoch), "val_loss": 1.0})
        with (store.root / "trained.log").open("a") as log:
            log.write(f"{spec.trial_id} {epoch}\n")
        beside = state.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(history))
        beside.replace(state)
        report(epoch, history[-1])
    with store.draft("trial", spec.key, params={}, inputs={}) as draft:
        draft.result["history"] = history


def spec_maker(folder, seed=0, epoch_s=0.0):
    """Return what turns a point into a trial."""

    def make(trial_id, variant, point):
        setting = digest([variant, point])[:8]
        name = trial_id if trial_id.startswith("s-") else f"s-{trial_id}"
        key = digest(["toy", variant, point, seed])
        train = {"epoch_s": epoch_s}
        return TrialSpec(
            name,
            setting,
            variant,
            "search",
            seed,
            None,
            point,
            train,
            key,
            str(folder),
            "",
            "",
            {"a": 2},
        )

    return make


def in_store(folder):
    """Return what looks up finished trainings."""

    def find(spec):
        found = Store(Path(folder)).find("trial", spec.key)
        return found.result["history"] if found else None

    return find


def make_studies(folder, search, variants=("a",), seed=0, epoch_s=0.0):
    search = Search.model_validate(
        {"space": SPACE, "scheduler": {"name": "asha", "grace": "1 epochs"}, **search}
    )
    return Studies("toy", search, list(variants), seed, spec_maker(folder, seed, epoch_s))


def make_controller(ledger, studies, folder, **options):
    return search_controller(
        studies,
        ledger,
        dict.fromkeys(studies.variants, f"{N_EPOCHS} epochs"),
        finished=in_store(folder),
        **options,
    )


class KilledError(Exception):
    """The driver is no more."""


class MortalLedger(Ledger):
    """Kills its driver at its n-th record: before writing it, in the middle of it, or right after."""

    def __init__(self, run, dies_at=None, how="after"):
        super().__init__(run)
        self.dies_at, self.how = dies_at, how

    def append(self, event, *, commit=False):
        self.dies_at = None if self.dies_at is None else self.dies_at - 1
        if self.dies_at == 0 and self.how == "before":
            raise KilledError
        super().append(event, commit=commit)
        if self.dies_at == 0:
            if self.how == "torn":
                self._file.truncate(self._file.tell() - 5)
            raise KilledError


def simulate(
    controller,
    *,
    max_concurrent,
    curve=None,
    finish=lambda spec, history: None,
    speed=lambda spec: 1.0,
):
    """Play Tune's part without Ray, in simulated time; return how many epochs were trained, in order of reports.

    Args:
        controller: what to run.
        max_concurrent: trials at a time.
        curve: (params, epoch) -> val macro F1.
        finish: called when a training has reached its end, before the driver knows.
        speed: spec -> time per epoch.
    """
    curve = curve or score
    running, trained = [], []
    now, is_finished = 0.0, False
    while True:
        while not is_finished and len(running) < max_concurrent:
            step = controller.next()
            if not isinstance(step, Proposal):
                is_finished = isinstance(step, Finished)
                break
            if step.has_ended:
                controller.on_end(step.spec.trial_id, "COMPLETE")
            else:
                running.append((now + speed(step.spec), len(trained), step, 1))
        if not running:
            return trained
        running.sort(key=lambda entry: entry[:2])
        now, _, step, epoch = running.pop(0)
        name = step.spec.trial_id
        if step.replay:
            metrics = step.replay.reports[epoch - 1][1]
        else:
            metrics = {"val_macro_f1": curve(step.spec.params, epoch)}
            trained.append((name, epoch))
        if controller.on_report(name, epoch, metrics):
            continue
        if epoch < N_EPOCHS:
            running.append((now + speed(step.spec), len(trained), step, epoch + 1))
            continue
        if not step.replay:
            epochs = range(1, N_EPOCHS + 1)
            finish(step.spec, [{"val_macro_f1": curve(step.spec.params, e)} for e in epochs])
        controller.on_end(name, "COMPLETE")


def drive(
    folder,
    search,
    *,
    max_concurrent,
    epoch_s=0.0,
    seed=0,
    body=train,
    watch=None,
    cpu=0.5,
    must_yield=lambda: False,
):
    """Run a study to its end, or go on with it, in a cluster that is already there; return its trial controller."""
    from orchestrator.search.ray_tune import run

    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder) as ledger:
        ledger.append(RunResumed(run_id="toy") if ledger.events else RunStarted(run_id="toy"))
        ledger.append(PhaseStarted(phase="search"))
        controller = make_controller(
            ledger, make_studies(folder, search, epoch_s=epoch_s, seed=seed), folder
        )
        controller.must_yield = must_yield
        tune = folder / "tune/search"
        run(
            controller,
            tune,
            cpu=cpu,
            max_concurrent=max_concurrent,
            body=body,
            modules=(),
            watch=watch or Watch(),
        )
        return controller


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--address", required=True)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--concurrent", type=int, default=1)
    parser.add_argument("--epoch-s", type=float, default=0.01)
    args = parser.parse_args()
    from orchestrator.cluster.connection import connect

    with connect(args.address):
        drive(
            args.folder,
            {"trials": args.trials},
            max_concurrent=args.concurrent,
            epoch_s=args.epoch_s,
        )


if __name__ == "__main__":
    main()
