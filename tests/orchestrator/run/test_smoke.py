from pathlib import Path

from orchestrator.run import driver as execute
from orchestrator.spec.load import read
from orchestrator.store.artifacts import Store

ROOT = Path(__file__).resolve().parents[3]


def test_a_smoke_run_is_one_step_wherever_a_length_is_named(tmp_path, monkeypatch):
    """What would be submitted is caught here; it is read as every spec is, and run as every spec is."""
    changes = [
        "variants.half_cutmix={train.augment.cutmix: half, train.duration: 30 epochs}",
        "variants.long={train.duration: 40 epochs}",  # in one step it is plain again
        "search.space={train.duration: {choice: [6 epochs, 30 epochs]}}",
        "search.start=[{train.duration: 6 epochs}]",
    ]
    experiment = read(ROOT / "experiments/quickstart.yaml", changes, check_roots=False)
    monkeypatch.setattr(
        execute, "submit", lambda found, store, options: submitted.append(found) or 0
    )
    submitted = []
    assert 0 == execute._smoke(experiment, Store(tmp_path), execute.Options(), execute.Reporter())
    (found,) = submitted
    assert "quickstart-smoke" == found.spec.name
    assert dict.fromkeys(("plain", "half_cutmix", "long"), "1 steps") == {
        n: arm.train.duration for n, arm in found.arms.items()
    }
    assert ({}, 1, 2) == (
        found.spec.search.space,
        found.spec.search.trials,
        found.spec.confirm.folds,
    )
