"""One trial on a worker: rows and parts in, an artifact of the store out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import write_json
from orchestrator.base.errors import UserError
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact, Store
from orchestrator.store.features import feature_store

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
    inputs: dict[str, str] = field(
        default_factory=dict
    )  # name -> key or sha256 of what the trial is made of
    mixable: str | None = (
        None  # Parquet: sample_id, fits, within, group; where MixUp asks who may be mixed
    )
    source: str | None = None  # key of the trial whose feature map head frozen_deep stands on
    micro_batch: int | None = (
        None  # after its worker was killed for memory; part of no key, said in the result
    )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def run_trial(spec: TrialSpec, report: Report) -> Artifact:
    """Train one trial, or find it finished in the store and tell its epochs again.

    The held-out fold of a confirm trial is predicted once, at the end; its labels never reach the training. Where
    another run trains the same trial, this one waits and takes what it makes; that counts as time without a report.

    Raises:
        UserError: head frozen_deep has no source, or one that was trained on other parts.
    """
    from filelock import FileLock  # noqa: PLC0415

    store = Store(Path(spec.store))
    if (found := store.find("trial", spec.key)) is None:
        with FileLock(store.work_dir("trial", spec.key).with_suffix(".lock")):
            if (found := store.find("trial", spec.key)) is None:
                return _train(spec, store, report)
    for epoch, metrics in enumerate(found.result["history"], 1):
        report(epoch, metrics)
    return found


def _train(spec: TrialSpec, store: Store, report: Report) -> Artifact:
    from data_prep.preparation.shards import open_rows  # noqa: PLC0415
    from trainers.classifier import train  # noqa: PLC0415
    from trainers.config import Train  # noqa: PLC0415
    from trainers.data import Task  # noqa: PLC0415

    rows = open_rows(Path(spec.rows))
    parts = _parts(spec, rows.index)
    targets = np.zeros((len(rows.sample_ids), len(spec.label_sizes)), np.int64)
    for name in ("train", "val"):
        at, codes = parts[name]
        targets[at] = codes
    task = Task(
        rows.images,
        targets,
        rows.sample_ids,
        spec.label_sizes,
        parts["train"][0],
        parts["val"][0],
        mixable=_mixable(spec, rows.index),
    )
    work = store.work_dir("trial", spec.key)
    result = train(
        Train.model_validate(spec.train),
        task,
        seed=spec.seed,
        report=report,
        work_dir=work,
        device=spec.device,
        threads=spec.threads,
        source=_source_weights(spec, store),
        feature_store=_features(spec, store),
        micro_batch=spec.micro_batch,
    )
    params = {"train": spec.train, "seed": spec.seed, "fold": spec.fold}
    with store.draft("trial", spec.key, params=params, inputs=spec.inputs) as draft:
        for name in ("weights.safetensors", "model.json"):
            (draft.path / name).write_bytes((work / name).read_bytes())
        tables.write(
            _predictions(
                spec, store, work, rows, parts["holdout" if spec.phase == "confirm" else "val"]
            ),
            draft.path / "predictions.parquet",
        )
        if len(result.pairs):
            tables.write(_mixed(rows, result.pairs), draft.path / "mixed.parquet")
        write_json(draft.path / "result.json", {"spec": spec.to_json(), "history": result.history})
        draft.result |= {
            "history": result.history,
            "best_epoch": result.best_epoch,
            "micro_batch": result.micro_batch,
        }
    return store.get("trial", spec.key)


class MissingSource(UserError):  # noqa: N818 - says what is the case
    """What a trial stands on was never finished."""


def _source_weights(spec: TrialSpec, store: Store) -> dict[str, Any] | None:
    """Return the weights that head frozen_deep stands on, after a look at where they come from.

    Raises:
        MissingSource: there is none.
        UserError: its seed, fold, parts or photos differ from this trial's: its feature map would have seen what this
            trial is scored on.
    """
    if spec.train["model"]["head"]["name"] != "frozen_deep":
        return None
    variant = spec.train["model"]["head"]["from"]
    found = store.find("trial", spec.source) if spec.source else None
    if found is None:
        raise MissingSource(
            f"head frozen_deep: a finished trial of {variant} was required, found none; see why it failed"
        )
    own = {
        "seed": spec.seed,
        "fold": spec.fold,
        **{name: spec.inputs.get(name) for name in ("parts", "prepare")},
    }
    theirs = {
        **{name: found.manifest["params"].get(name) for name in ("seed", "fold")},
        **{name: found.manifest["inputs"].get(name) for name in ("parts", "prepare")},
    }
    if wrong := [name for name, value in own.items() if value != theirs[name]]:
        told = "; ".join(f"{name} {own[name]} was required, found {theirs[name]}" for name in wrong)
        raise UserError(
            f"head frozen_deep: its source {spec.source} was trained on other data: {told}"
        )
    from trainers.checkpoint import load_weights  # noqa: PLC0415

    found.file("weights.safetensors")
    return dict(load_weights(found.path)[0])


def _mixable(spec: TrialSpec, index: Mapping[str, int]) -> Any:
    """Return what MixUp may mix, by row, or None where it does not ask."""
    if spec.mixable is None:
        return None
    from trainers.data import Mixable  # noqa: PLC0415

    table = [
        row for row in tables.read(Path(spec.mixable)).to_pylist() if row["sample_id"] in index
    ]
    at = [index[row["sample_id"]] for row in table]
    fits = np.zeros(len(index), np.bool_)
    within = np.zeros(len(index), np.int64)
    group = np.zeros(len(index), np.int64)
    fits[at] = [row["fits"] for row in table]
    within[at] = [row["within"] for row in table]
    group[at] = [row["group"] for row in table]
    return Mixable(fits, within, group)


def _mixed(rows: Any, pairs: Any) -> Any:
    """Return the extra samples of offline MixUp as rows, each with both parents."""
    ids = rows.sample_ids
    return tables.from_rows(
        (
            {"sample_id": f"mixup/{at}", "parent_a": ids[a], "parent_b": ids[b], "weight_a": 0.5}
            for at, (a, b) in enumerate(pairs.tolist())
        ),
        tables.MIXED,
    )


def _parts(spec: TrialSpec, index: Mapping[str, int]) -> dict[str, tuple[Any, Any]]:
    """Return per part its rows (n,) and codes (n, L). Samples that preparation quarantined are not there."""
    table = tables.read(Path(spec.parts)).to_pylist()
    found = {}
    for name in ("train", "val", "holdout"):
        own = [row for row in table if row["part"] == name and row["sample_id"] in index]
        at = np.array([index[row["sample_id"]] for row in own], np.int64)
        codes = np.array(
            [[row[f"label_{label}"] for label in spec.label_sizes] for row in own], np.int64
        )
        found[name] = (at, codes.reshape(len(own), len(spec.label_sizes)))
    return found


def _features(
    spec: TrialSpec, store: Store
) -> Callable[[dict[str, object], Callable[[], Any]], Any]:
    """Return where features of a frozen backbone are kept."""
    return feature_store(store, spec.inputs.get("prepare", spec.rows))


def _predictions(
    spec: TrialSpec, store: Store, work: Path, rows: Any, part: tuple[Any, Any]
) -> Any:
    from trainers.feature_cache import kept_features  # noqa: PLC0415
    from trainers.inference import load, predict  # noqa: PLC0415
    from trainers.metrics import joint_class  # noqa: PLC0415

    at, codes = part
    model = load(work)
    answered = [label for labels in model.head.branches.values() for label in labels]
    columns = [list(spec.label_sizes).index(name) for name in answered]
    target = joint_class(codes[:, columns], tuple(spec.label_sizes[name] for name in answered))
    features = kept_features(
        model.to(spec.device), rows.images, rows.sample_ids, _features(spec, store)
    )
    probs = predict(model, rows.images, at, device=spec.device, features=features)
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
