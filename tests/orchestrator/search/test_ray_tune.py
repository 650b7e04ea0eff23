"""The controller under real Tune, in one local cluster that is told it has a GPU."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.cluster.connection import prepare_environment
from orchestrator.report.command_text.state_reasons import why
from orchestrator.search.card_sharing.shares import FixedShare
from orchestrator.search.controller import TrialController
from orchestrator.search.trial_process import Watch
from orchestrator.store.event_types import TrialEnded
from orchestrator.store.ledger import Ledger, read, replay
from orchestrator.store.run_dir import RunPaths
from tests.orchestrator.search import toy
from tests.orchestrator.search.test_controller import outcome
from tests.orchestrator.search.test_trial_process import Spec, misbehave

prepare_environment(
    None, insecure=False
)  # before anything in this process imports Ray, which reads it then
pytestmark = [pytest.mark.ray, pytest.mark.slow]
FAULTS = {
    "raises": ("raised", "ValueError: no such layer"),
    "nan": ("diverged", "val_macro_f1 is nan in epoch 1"),
    "forgets": ("metric", "val_macro_f1 was required in the report of epoch 1, found val_accuracy"),
    "hangs": ("hung", "no report for 6 s"),
    "eats": ("memory", "of memory taken, 0.4 allowed"),
    "exits": ("exited", "exit code 3 in the middle of training, 3 times"),
    "killed": ("killed", "killed by SIGSEGV, 3 times"),
}


@pytest.fixture(scope="module")
def cluster():
    from orchestrator.cluster.connection import connect

    before = signal.getsignal(signal.SIGTERM)
    with connect(None, num_cpus=2, num_gpus=1, dashboard=False):
        import ray

        assert before == signal.getsignal(signal.SIGTERM)  # the driver answers it, as always

        yield ray.get_runtime_context().gcs_address


def specs(folder, names, body_of=lambda name: {}):
    make = toy.spec_maker(folder)
    return [make(name, name, {"what": name, **body_of(name)}) for name in names]


def fault(spec, report):
    misbehave(Spec(spec.params["what"], n=2), report)


def run_all(folder, wanted, body, shares=FixedShare(), **options):  # noqa: B008 - frozen
    from orchestrator.search.ray_tune import run

    with Ledger(folder) as ledger:
        controller = TrialController(
            ledger, "search", iter([(spec, None) for spec in wanted]), shares=shares
        )
        run(controller, folder / "tune/search", body=body, modules=(), cpu=0.5, **options)
    return controller


def test_one_of_each_failure_costs_that_trial_only_and_why_tells_it(cluster, tmp_path):
    names = ["good-1", *FAULTS, "good-2"]
    watch = Watch(report_s=6, memory_gb=0.4, logs=str(tmp_path / "logs"))
    controller = run_all(tmp_path, specs(tmp_path, names), fault, max_concurrent=2, watch=watch)
    assert {"COMPLETE": 2, "FAILED": 7} == controller.counts
    for name, (cause, text) in FAULTS.items():
        trial = controller.records[f"s-{name}"]
        assert ("FAILED", cause, True) == (
            trial.status,
            trial.cause,
            text in trial.error,
        ), trial.ended
        told = "\n".join(why(RunPaths(tmp_path), f"s-{name}"))
        assert text in told
        assert f"\n  {cause}: " in told
    assert "no such layer" in (tmp_path / "logs/s-raises.log").read_text()
    from ray.tune import ExperimentAnalysis

    found = ExperimentAnalysis(str(tmp_path / "tune/search"))
    assert Counter(trial.status for trial in found.trials)["TERMINATED"] == 2
    again = [f"s-{name}-attempt{n}" for name in ("exits", "killed") for n in (0, 1)]
    assert {*again, *(f"s-{name}" for name in names)} == {t.trial_id for t in found.trials}


def test_a_worker_chooses_precision_auto_by_the_rule(cluster):
    # workers import this module, and torch would fill the memory that the test above allows
    from orchestrator.search import numeric_precision
    from orchestrator.spec.models import TrialShare
    from tests.orchestrator.search.test_numeric_precision import SCHEMA, arm
    from trainers.compute_settings import choose_precision_for

    share = TrialShare(cpu=0.5)
    for backbone in ("resnet18", "tf_efficientnet_lite0"):
        wanted = arm("auto", backbone)
        expected = choose_precision_for(wanted.train.model, {"a": 2}, size=64, device="cpu")
        assert expected == numeric_precision._choose_on_worker(wanted, SCHEMA, share)


def test_half_a_gpu_each_overlaps_and_a_whole_one_waits(cluster, tmp_path):
    def note(spec, report):
        began = time.time()
        time.sleep(1.5)
        (Path(spec.store) / f"{spec.trial_id}.json").write_text(json.dumps([began, time.time()]))
        report(1, {"val_macro_f1": 0.5})

    def overlap(folder, gpu):
        folder.mkdir()
        wanted = specs(folder, ["x", "y"])
        run_all(folder, wanted, note, max_concurrent=2, shares=FixedShare(gpu))
        first, second = sorted(json.loads(path.read_text()) for path in folder.glob("s-*.json"))
        return first[1] - second[0]

    assert overlap(tmp_path / "half", 0.5) > 0
    assert overlap(tmp_path / "whole", 1) <= 0


def test_killed_drivers_lose_nothing_and_tune_and_optuna_open_what_is_left(cluster, tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "tests.orchestrator.search.toy",
        str(killed),
        "--address",
        cluster,
        "--trials",
        "10",
    ]
    for n_ended in (2, 6, None):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while n_ended and driver.poll() is None and len(ends(killed)) < n_ended:
            time.sleep(0.02)
        assert driver.poll() is None
        if n_ended:
            driver.kill()
            driver.wait(120)
            assert set(tune_results(killed)) <= set(replay(read(killed / "events.jsonl")).trials)
        driver.wait(120)
    toy.drive(calm, {"trials": 10}, max_concurrent=1, epoch_s=0.01)
    assert outcome(calm) == outcome(killed)
    assert {1} == set(Counter(ends(killed)).values())
    lines = Counter((killed / "trained.log").read_text().splitlines())
    again = {line.split()[0] for line, n in lines.items() if n > 1}
    assert len(again) <= 2  # the ones in flight, at most an epoch of each
    check_tune_results(killed)
    check_journal(killed)


def test_tunes_folder_has_ended_trials_while_others_run(cluster, tmp_path):
    def wait_for_first(spec, report):
        report(1, {"val_macro_f1": 0.5})
        files = Path(spec.store) / "tune/search"
        until = time.monotonic() + 60
        while spec.trial_id == "s-second" and not (files / "s-first/result.json").exists():
            assert time.monotonic() < until, "the first trial is not in Tune's folder"
            time.sleep(0.05)

    wanted = specs(tmp_path, ["first", "second"])
    controller = run_all(tmp_path, wanted, wait_for_first, max_concurrent=1)
    assert {"COMPLETE": 2} == controller.counts


def tune_results(folder):
    """Return what Tune itself reads of a search: trial id -> result."""
    from ray import tune

    grid = tune.Tuner.restore(str(folder / "tune/search"), trainable="Trial").get_results()
    return {result.metrics["trial_id"]: result for result in grid}


def check_tune_results(folder):
    """Open what Tune has of a finished search as a user of Tune would."""
    from ray.tune import ExperimentAnalysis

    trials = replay(read(folder / "events.jsonl")).trials
    results = tune_results(folder)
    assert trials.keys() == results.keys()
    for name, trial in trials.items():
        result = results[name]
        also = {"variant": "a", "setting": trial.setting, "seed": 0, "fold": None}
        assert trial.params | also == result.config
        if trial.status == "COMPLETE":
            assert folder / f"trial/{trial.key}" == Path(result.checkpoint.path)
            assert (Path(result.checkpoint.path) / "manifest.json").exists()
        else:
            assert result.checkpoint is None
    analysis = ExperimentAnalysis(
        str(folder / "tune/search"), default_metric="val_macro_f1", default_mode="max"
    )
    best = max(trials.values(), key=lambda trial: list(trial.reports.values())[-1]["val_macro_f1"])
    assert best.trial_id == analysis.best_trial.trial_id
    checkpoint = analysis.get_best_checkpoint(analysis.best_trial)
    assert folder / f"trial/{best.key}" == Path(checkpoint.path)
    frame = analysis.dataframe()
    assert {"trial_id", "config/train.lr", "config/variant", "config/seed"} <= set(frame.columns)
    assert sorted(trials) == sorted(frame["trial_id"])


def ends(folder):
    path = folder / "events.jsonl"
    return [e.trial_id for e in read(path) if isinstance(e, TrialEnded)] if path.exists() else []


def check_journal(folder):
    """Mirror the ledger and open it with Optuna, as a user would."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from orchestrator.run.trackers.optuna_journal import Journal
    from orchestrator.spec.search_space import Search

    journal = Journal(folder, Search.model_validate({"space": toy.SPACE}))
    for trial in replay(read(folder / "events.jsonl")).trials.values():
        journal.take(trial)
    study = optuna.load_study(
        study_name=f"{folder.name}/a",
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
    )
    assert len(outcome(folder)) == len(study.trials)
    assert not [trial for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
    assert "train.lr" in optuna.importance.get_param_importances(study)
    assert optuna.visualization.plot_optimization_history(study).data
    assert optuna.visualization.plot_parallel_coordinate(study).data
