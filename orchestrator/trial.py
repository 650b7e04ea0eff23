"""One trial on a worker: rows and parts in, an artifact of the store out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import tables
from orchestrator.store import Artifact, Store, write_json

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrialSpec:
    """All that a worker needs to know; plain values, so that it travels and stands in the ledger."""

    trial_id: str
    setting: str
    variant: str
    phase: str  # search | confirm
    seed: int
    fold: int | None
    params: dict[str, Any]
    train: dict[str, Any]
    key: str  # of the artifact
    store: str
    rows: str  # folder of the memory-mapped samples
    parts: str  # Parquet: sample_id, part (train | val | holdout), label_<name>
    label_sizes: dict[str, int]
    threads: int = 1
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def run_trial(spec: TrialSpec, report: Report) -> Artifact:
    """Train one trial, or find it finished in the store and tell its epochs again.

    The held-out fold of a confirm trial is predicted once, at the end; its labels never reach the training.
    """
    store = Store(Path(spec.store))
    if (found := store.find("trial", spec.key)) is not None:
        for epoch, metrics in enumerate(found.result["history"], 1):
            report(epoch, metrics)
        return found
    from data_prep.shards import open_rows  # noqa: PLC0415
    from trainers.classifier import train  # noqa: PLC0415
    from trainers.config import Train  # noqa: PLC0415
    from trainers.data import Task  # noqa: PLC0415

    rows = open_rows(Path(spec.rows))
    parts = _parts(spec, rows.index)
    targets = np.zeros((len(rows.sample_ids), len(spec.label_sizes)), np.int64)
    for name in ("train", "val"):
        at, codes = parts[name]
        targets[at] = codes
    task = Task(rows.images, targets, rows.sample_ids, spec.label_sizes, parts["train"][0], parts["val"][0])
    work = store.work_dir("trial", spec.key)
    result = train(
        Train.model_validate(spec.train),
        task,
        seed=spec.seed,
        report=report,
        work_dir=work,
        device=spec.device,
        threads=spec.threads,
    )
    with store.draft(
        "trial", spec.key, params={"train": spec.train, "seed": spec.seed, "fold": spec.fold}, inputs={}
    ) as draft:
        for name in ("weights.safetensors", "model.json"):
            (draft.path / name).write_bytes((work / name).read_bytes())
        tables.write(
            _predictions(spec, work, rows, parts["holdout" if spec.phase == "confirm" else "val"]),
            draft.path / "predictions.parquet",
        )
        write_json(draft.path / "result.json", {"spec": spec.to_json(), "history": result.history})
        draft.result |= {"history": result.history, "best_epoch": result.best_epoch}
    return store.get("trial", spec.key)


def _parts(spec: TrialSpec, index: Mapping[str, int]) -> dict[str, tuple[Any, Any]]:
    """Return per part its rows (n,) and codes (n, L). Samples that preparation quarantined are not there."""
    table = tables.read(Path(spec.parts)).to_pylist()
    found = {}
    for name in ("train", "val", "holdout"):
        own = [row for row in table if row["part"] == name and row["sample_id"] in index]
        at = np.array([index[row["sample_id"]] for row in own], np.int64)
        codes = np.array([[row[f"label_{label}"] for label in spec.label_sizes] for row in own], np.int64)
        found[name] = (at, codes.reshape(len(own), len(spec.label_sizes)))
    return found


def _predictions(spec: TrialSpec, work: Path, rows: Any, part: tuple[Any, Any]) -> Any:
    from trainers.metrics import joint_class  # noqa: PLC0415
    from trainers.predict import load, predict  # noqa: PLC0415

    at, codes = part
    model = load(work)
    answered = [label for labels in model.head.branches.values() for label in labels]
    columns = [list(spec.label_sizes).index(name) for name in answered]
    target = joint_class(codes[:, columns], tuple(spec.label_sizes[name] for name in answered))
    probs = predict(model, rows.images[at], device=spec.device)
    return tables.from_rows(
        (
            {
                "trial_id": spec.trial_id,
                "setting": spec.setting,
                "variant": spec.variant,
                "seed": spec.seed,
                "fold": spec.fold,
                "sample_id": rows.sample_ids[row],
                "split": "oof" if spec.phase == "confirm" else "val",
                "target": int(target[i]),
                "pred": int(probs[i].argmax()),
                "probs": probs[i].tolist(),
            }
            for i, row in enumerate(at)
        ),
        tables.PREDICTIONS,
    )
