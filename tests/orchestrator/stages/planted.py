"""Outputs of stages that tests plant in a real store, and an Env that needs no cluster."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from orchestrator.base.console import Reporter
from orchestrator.evaluation.selection import Candidate
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage import SUCCEEDED
from orchestrator.spec.load import read
from orchestrator.stages import select, test_set, vote
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.confirm import Confirmed
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.search import Searched
from orchestrator.stages.split import Split
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import TrialEnded, TrialStarted
from orchestrator.store.ledger import Ledger, TrialRecord
from orchestrator.store.run_dir import RunPaths
from tests.conftest import ROOT

QUICKSTART = ROOT / "experiments/quickstart.yaml"


def open_env(root, *changes, spec=QUICKSTART, experiment=None, store=None):
    """An Env of a new run below `root`. Its ledger stays open until the process ends."""
    experiment = experiment or read(spec, list(changes), check_roots=False)
    store = store or Store(root / "store")
    paths = RunPaths(store.root / "runs" / experiment.spec.name)
    paths.root.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(paths.root).__enter__()
    return Env(experiment, "files", store, paths, ledger, Reporter(quiet=True), 1.0, 0.0)


def plant_catalog(store, table, **facts):
    """A catalog with these rows; nothing is quarantined unless `facts` say so."""
    facts = {
        "content": "content",
        "photos": "photos",
        "quarantined": {},
        "majority_class": 0,
        "n_ok": len(table),
        "n_groups": len(set(table["group"].to_pylist())),
    } | facts
    with store.draft("catalog", "c" * 16, params={}, inputs={}) as draft:
        tables.write(table, draft.path / "catalog.parquet")
        draft.result |= facts
    return Catalog(SUCCEEDED, "", store.get("catalog", "c" * 16))


def plant_split(store, folds):
    """A split with these folds by variant."""
    artifacts = {}
    for number, (variant, table) in enumerate(folds.items()):
        key = f"{number}" * 16
        with store.draft("split", key, params={}, inputs={}) as draft:
            tables.write(table, draft.path / "folds.parquet")
        artifacts[variant] = store.get("split", key)
    return Split(SUCCEEDED, "", artifacts, folds)


def plant_prepared(store, quarantined):
    """Empty shards and rows by variant, with the photos that each variant lacks."""
    shards, rows = {}, {}
    for number, (variant, samples) in enumerate(quarantined.items()):
        for kind in ("prepare", "rows"):
            with store.draft(kind, f"{number}" * 16, params={}, inputs={}) as draft:
                draft.result["quarantined"] = dict.fromkeys(samples, "no face")
        shards[variant] = store.get("prepare", f"{number}" * 16)
        rows[variant] = store.get("rows", f"{number}" * 16)
    return Prepared(SUCCEEDED, "", shards, rows)


def planted_candidate(setting, **changes):
    """A candidate with these numbers."""
    facts = {
        "variant": "v", "oof_macro_f1": 0.55, "low": 0.5, "high": 0.6, "low_rounded": 0.5,
        "oof_accuracy": 0.6, "worst_class": 0, "worst_class_recall": 0.2, "total_variation": 0.1,
        "n_params": 10, "search_score": 0.6, "n_groups": 40, "n_samples": 280, "n_seeds": 2,
    }  # fmt: skip
    return Candidate(setting, **(facts | changes))


@dataclass
class World:
    """A run whose trials are planted, up to confirm: its Env and the outputs of its stages.

    Seven people, two classes. Settings one, two and three answer two photos of each person; the
    class of photo k of a person is k. `test_probs` holds the probability of class 1 of every test
    photo by setting, one per checkpoint.
    """

    env: Env
    catalog: Catalog
    split: Split
    prepared: Prepared
    searched: Searched
    confirmed: Confirmed
    test_probs: dict[str, dict[str, list[float]]]

    def select(self):
        return select.run(
            self.env, self.catalog, self.split, self.prepared, self.searched, self.confirmed
        )

    def vote(self, selected):
        return vote.run(self.env, self.catalog, self.prepared, self.confirmed, selected)

    def predict_trials(self, env, prepare, trials, samples):
        """What `test_set.predict_trials` computes on a cluster."""
        predicted = []
        for trial in trials:
            place = int(trial.trial_id[-1])
            ones = [self.test_probs[trial.setting][sample][place] for sample in samples]
            probs = np.array([[1 - p, p] for p in ones], np.float32).reshape(-1, 2)
            predicted.append(test_set.TrialProbs(trial, probs))
        return predicted


VARIANTS = {"one": "a", "two": "b", "three": "a"}
WRONG = {"one": [5], "two": [3, 4], "three": [0, 1, 2]}
"""The people whose photos a setting confuses. Everybody takes photo 0 of person 6 for class 1."""
WRONG_PROB = {"one": 0.6, "two": 0.6, "three": 0.95}
TEST_PROBS = {
    "one": {"test/t0": [0.1, 0.1], "test/t1": [0.9, 0.3], "test/t2": [0.8, 0.6], "test/t4": [0.9, 0.7]},
    "two": {"test/t0": [0.2, 0.2], "test/t1": [0.1, 0.1], "test/t2": [0.2, 0.4], "test/t4": [0.6, 0.6]},
    "three": {"test/t0": [0.1, 0.1], "test/t1": [0.9, 0.9], "test/t2": [0.9, 0.9], "test/t4": [0.9, 0.9]},
}  # fmt: skip
TEST_LABELS = {"t0": 0, "t1": 1, "t2": 1, "t3": 1, "t4": 1}


def plant_world(root, *changes, groups=("q", "q", "r", "r", "s")):
    """Plant a world. Test photo t3 cannot be read."""
    (root / "eval/images").mkdir(parents=True)
    for name in TEST_LABELS:
        (root / "eval/images" / name).touch()
    rows = [f"{name},{label}" for name, label in TEST_LABELS.items()]
    (root / "eval/info.csv").write_text("\n".join(["ImageID,ans", *rows]) + "\n")
    experiment = read(
        ROOT / "experiments/smoke.yaml",
        [
            "data.labels={mask: {from: stem, classes: {wear: 'mask*', bare: normal}}}",
            "data.test={root: eval, table: info.csv, id: ImageID, label: ans}",
            "hypotheses=[]",
            "search=null",
            "confirm={finalists: 3, seeds: [0, 1], folds: 2}",
            *changes,
        ],
        check_roots=False,
    )
    env = open_env(root, experiment=replace(experiment, base=root))
    people = [f"p{person}" for person in range(7) for _ in range(2)]
    samples = [f"train/{person}/{photo}.jpg" for person in range(7) for photo in range(2)]
    tests = [f"test/{name}" for name in TEST_LABELS]
    table = pa.table(
        {
            "sample_id": samples + tests,
            "group": people + list(groups),
            "label": [0, 1] * 7 + [None] * len(tests),
        }
    )
    folds = pa.table(
        {
            "sample_id": samples,
            "group": people,
            "label": [0, 1] * 7,
            "role": ["train"] * len(samples),
        }
    )
    catalog = plant_catalog(env.store, table, quarantined={"test/t3": "truncated"})
    trials, predictions = [], []
    for setting in VARIANTS:
        for seed in (0, 1):
            trial, answered = _plant_trial(env.store, setting, seed)
            trials.append(trial)
            predictions.append(answered)
    checkpoints = {name: [t for t in trials if t.setting == name] for name in VARIANTS}
    predictions = pa.concat_tables(predictions)
    return World(
        env,
        catalog,
        plant_split(env.store, dict.fromkeys(("a", "b"), folds)),
        plant_prepared(env.store, {"a": [], "b": []}),
        Searched(SUCCEEDED, "", (), ()),
        Confirmed(SUCCEEDED, "", "oof", tuple(trials), checkpoints, predictions),
        TEST_PROBS,
    )


def _plant_trial(store, setting, seed):
    """One training that held every photo out, which no real one does: folds change no answer."""
    name, key, rows = f"c-{setting}-s{seed}", f"{setting}{seed}", []
    for person in range(7):
        for photo in range(2):
            wrong = person in WRONG[setting] or (person, photo) == (6, 0)
            sure = WRONG_PROB[setting] if person in WRONG[setting] else 0.9
            pred = 1 - photo if wrong else photo
            probs = [1 - sure, sure] if pred else [sure, 1 - sure]
            rows.append(
                {
                    "trial_id": name,
                    "setting": setting,
                    "variant": VARIANTS[setting],
                    "seed": seed,
                    "fold": person % 2,
                    "sample_id": f"train/{person}/{photo}.jpg",
                    "split": "oof",
                    "target": photo,
                    "pred": pred,
                    "probs": probs,
                }
            )
    predictions = tables.from_rows(rows, tables.PREDICTIONS)
    with store.draft("trial", key, params={}, inputs={}) as draft:
        (draft.path / "model.json").write_text('{"n_params": 10}')
        (draft.path / "weights.safetensors").write_bytes(name.encode())
        tables.write(predictions, draft.path / "predictions.parquet")
    started = TrialStarted(
        trial_id=name,
        phase="confirm",
        variant=VARIANTS[setting],
        setting=setting,
        seed=seed,
        key=key,
    )
    trial = TrialRecord(started)
    trial.ended = TrialEnded(trial_id=name, status="COMPLETE", metrics={"val_macro_f1": 0.5})
    return trial, predictions
