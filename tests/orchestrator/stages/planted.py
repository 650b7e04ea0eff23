"""Outputs of stages that tests plant in a real store, and an Env that needs no cluster."""

from orchestrator.base.console import Reporter
from orchestrator.evaluation.selection import Candidate
from orchestrator.planning.stage import SUCCEEDED, Env
from orchestrator.spec.load import read
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.split import Split
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.ledger import Ledger
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
