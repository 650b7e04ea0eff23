"""Stores with planted runs: a finished one, a live one, and ones with hostile names."""

from pathlib import Path

from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import (
    EpochReported,
    PhaseStarted,
    RunStarted,
    StageEnded,
    TrialEnded,
    TrialStarted,
)
from orchestrator.store.ledger import Ledger
from tests.orchestrator.report.fake_run import write_run

TOKEN = "right"
HOSTILE = "</script><img src=x onerror=alert(1)>\u202ebad\u0000 &amp;"
LONG = "x" * 10_000


def write_store(root: Path, n_people: int = 12) -> Store:
    """Write a store with one finished run, masks-1."""
    write_run(root / "runs/masks-1", n_people=n_people)
    return Store(root)


class LiveDriver:
    """Drives a made-up run by hand, with the lock of a real one."""

    def __init__(self, store: Store, run_id: str = "live-1") -> None:
        self.root = store.root / "runs" / run_id
        self.root.mkdir(parents=True)
        self._ledger = Ledger(self.root)
        self._ledger.__enter__()
        self.append(RunStarted(run_id=run_id, labels={"mask": ["on", "off"]}))

    def append(self, event):
        self._ledger.append(event)

    def begin_search(self):
        for stage in ("catalog", "split", "audit", "prepare"):
            self.append(StageEnded(stage=stage, outcome="SUCCEEDED", wall_s=1.0, note="done"))
        self.append(PhaseStarted(phase="search"))

    def start(self, trial_id, number=0, variant="base", **params):
        event = TrialStarted(
            trial_id=trial_id,
            setting=f"{number:08x}",
            variant=variant,
            phase="search",
            key="k",
            number=number,
            params=params,
        )
        self.append(event)

    def report(self, trial_id, epoch, score):
        metrics = {"val_macro_f1": score, "val_loss": 1.0 - score}
        self.append(EpochReported(trial_id=trial_id, epoch=epoch, metrics=metrics))

    def end(self, trial_id, status="COMPLETE", score=None, **facts):
        metrics = None if score is None else {"val_macro_f1": score}
        self.append(TrialEnded(trial_id=trial_id, status=status, metrics=metrics, **facts))

    def leave(self):
        """Let go of the run as a killed driver does."""
        self._ledger.__exit__()
