"""One trial on a worker: prepared photos and their parts in, an artifact of the store out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.catalog.label_schema import MISSING
from data_prep.files import write_json
from orchestrator.base.errors import UserError
from orchestrator.base.json_types import Json
from orchestrator.search.subset_files import BORDERS
from orchestrator.store import tables
from orchestrator.store.artifacts import WORK, Artifact, Lock, Store
from orchestrator.store.features import FeatureStore, feature_store
from orchestrator.store.store_address import open_store
from trainers.config import IS_LAST
from trainers.preflight.step_times import StepTimes

_WAIT_S = 0.2
Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrialSpec:
    """All that a worker needs; plain values, because it is sent to workers and to the ledger."""

    trial_id: str
    setting: str
    variant: str
    phase: str  # search | confirm
    seed: int
    fold: int | None
    params: Json  # the point of the search space
    train: Json  # the section `train`, resolved
    key: str  # of the artifact
    store: str
    rows: str  # folder of the memory-mapped photos
    parts: str  # Parquet: sample_id, part (train | val | holdout), label_<name>
    label_sizes: dict[str, int]
    threads: int = 1
    device: str = "cpu"
    inputs: dict[str, str] = field(default_factory=dict)  # name -> key or sha256
    mixable: str | None = None  # Parquet: sample_id, fits, within, group; None: MixUp mixes all
    facts: str | None = None  # Parquet: of `facts_file`; None where no loss needs it
    source: str | None = None  # key of the trial whose weights head frozen_deep takes
    micro_batch: int | None = None  # set after a worker ran out of memory; part of no key
    score: Json | None = None  # metric and labels that it maximizes; None: macro F1
    code: list[str] = field(default_factory=list)  # files of the user, which this trial may run
    step_times: StepTimes | None = None  # for `compile: auto`; the ledger has them once

    def to_json(self) -> Json:
        """Return plain data; it shares the containers."""
        facts = dict(vars(self))
        del facts["step_times"]
        for name in ("facts", "score", "code"):
            if not facts[name]:
                del facts[name]
        return facts


@dataclass(frozen=True)
class Part:
    """The photos of one part of a training."""

    rows: Any  # (n,) int64, into the prepared photos
    codes: Any  # (n, L) int64, one column per label; MISSING where a photo of part train lacks it


def run_trial(spec: TrialSpec, report: Report) -> Artifact:
    """Train one trial, or find it finished in the store and report its epochs again.

    A held-out fold is predicted once, at the end; its labels never reach the training. If another
    run trains the same trial, this one waits for its artifact. The wait is no time without a
    report: whoever trains is watched by its own run. `wall_s` goes on.

    Raises:
        UserError: head frozen_deep has no source, or its source was trained on other data.
    """
    store = open_store(spec.store)
    artifact = store.find("trial", spec.key)
    if artifact is None:
        lock = store.lock("trial", f"{WORK}{spec.key}.lock")
        _acquire(lock, getattr(report, "wait", None))
        try:
            artifact = store.find("trial", spec.key)
            if artifact is None:
                return _train(spec, store, report)
        finally:
            lock.release()
    history = artifact.result["history"]
    for epoch, metrics in enumerate(history, 1):
        report(epoch, {**metrics, IS_LAST: 1.0} if epoch == len(history) else metrics)
    return artifact


def _acquire(lock: Lock, say_waits: Callable[[], None] | None) -> None:
    """Acquire a lock that another run may hold for hours, and say now and then that this one waits."""
    from filelock import Timeout  # noqa: PLC0415

    while True:
        try:
            lock.acquire(timeout=_WAIT_S)
        except Timeout:
            if say_waits is not None:
                say_waits()
        else:
            return


def _train(spec: TrialSpec, store: Store, report: Report) -> Artifact:
    began = time.perf_counter()
    from data_prep.preparation.shards import open_rows  # noqa: PLC0415
    from trainers.config import Train  # noqa: PLC0415
    from trainers.data import Task  # noqa: PLC0415
    from trainers.metrics import Objective  # noqa: PLC0415
    from trainers.own_parts import allow, naming_lines  # noqa: PLC0415
    from trainers.training_loop import train  # noqa: PLC0415

    allow(*[store.here(file) for file in spec.code])
    photos = open_rows(store.here(spec.rows))
    parts = _read_parts(spec, store, photos.index)
    targets = np.zeros((len(photos.sample_ids), len(spec.label_sizes)), np.int64)
    for name in ("train", "val"):
        targets[parts[name].rows] = parts[name].codes
    task = Task(
        photos.images,
        targets,
        photos.sample_ids,
        spec.label_sizes,
        parts["train"].rows,
        parts["val"].rows,
        mixable=_read_mixable(spec, store, photos.index),
        **_read_facts(spec, store, photos.index, parts),
    )
    work = store.work_dir("trial", spec.key)
    features = feature_store(store, spec.inputs.get("prepare", spec.rows))
    with naming_lines():
        result = train(
            Train.model_validate(spec.train),
            task,
            seed=spec.seed,
            report=report,
            work_dir=work,
            device=spec.device,
            threads=spec.threads,
            source=_source_weights(spec, store),
            feature_store=features,
            micro_batch=spec.micro_batch,
            began=began,
            objective=None if spec.score is None else Objective(**spec.score),
            step_times=spec.step_times,
        )
        scored = parts["val" if spec.fold is None else "holdout"]
        predictions = _predictions(spec, work, photos, scored, features)
    params = {"train": spec.train, "seed": spec.seed, "fold": spec.fold}
    with store.draft("trial", spec.key, params=params, inputs=spec.inputs) as draft:
        for name in ("weights.safetensors", "model.json"):
            (draft.path / name).write_bytes((work / name).read_bytes())
        tables.write(predictions, draft.path / "predictions.parquet")
        if len(result.pairs):
            tables.write(_mixed(photos.sample_ids, result.pairs), draft.path / "mixed.parquet")
        write_json(draft.path / "result.json", {"spec": spec.to_json(), "history": result.history})
        draft.result |= {
            "history": result.history,
            "best_epoch": result.best_epoch,
            "micro_batch": result.micro_batch,
        }
        if result.soup:
            draft.result["soup"] = list(result.soup)
    return store.get("trial", spec.key)


class MissingSource(UserError):  # noqa: N818 - says what is the case
    """The trial that another one depends on was never finished."""


def _source_weights(spec: TrialSpec, store: Store) -> Json | None:
    """Return the weights that head frozen_deep depends on, after a check of their origin.

    Raises:
        MissingSource: there are none.
        UserError: their seed, fold, parts or photos differ from this trial's: they would have been
            trained on photos that this trial is scored on.
    """
    head = spec.train["model"]["head"]
    if head.get("name") != "frozen_deep":
        return None
    source = store.find("trial", spec.source) if spec.source else None
    if source is None:
        variant = head["from"]
        raise MissingSource(
            f"head frozen_deep: a finished trial of {variant} was required, found none; "
            f"see why the trials of {variant} failed"
        )
    params = source.manifest["params"]
    required = _training_data(spec.seed, spec.fold, spec.inputs)
    actual = _training_data(params.get("seed"), params.get("fold"), source.manifest["inputs"])
    faults = []
    for name, value in required.items():
        if value != actual[name]:
            faults.append(f"{name} {value} was required, found {actual[name]}")
    if faults:
        text = f"head frozen_deep: its source {spec.source} was trained on other data"
        raise UserError(f"{text}: {'; '.join(faults)}")
    from trainers.checkpoint import load_weights  # noqa: PLC0415

    source.file("weights.safetensors")
    return dict(load_weights(source.path)[0])


def _training_data(seed: Any, fold: Any, inputs: Mapping[str, str]) -> Json:
    """Return what decides the photos that a trial is trained on."""
    parts = inputs.get("parts")
    prepare = inputs.get("prepare")
    return {"seed": seed, "fold": fold, "parts": parts, "prepare": prepare}


def _read_mixable(spec: TrialSpec, store: Store, index: Mapping[str, int]) -> Any:
    """Return which photos MixUp may mix, and with which; None if it may mix all."""
    if spec.mixable is None:
        return None
    from trainers.data import Mixable  # noqa: PLC0415

    fits = np.zeros(len(index), np.bool_)
    within = np.zeros(len(index), np.int64)
    group = np.zeros(len(index), np.int64)
    for row in tables.read(store.here(spec.mixable)).to_pylist():
        place = index.get(row["sample_id"])
        if place is not None:
            fits[place] = row["fits"]
            within[place] = row["within"]
            group[place] = row["group"]
    return Mixable(fits, within, group)


def _read_facts(
    spec: TrialSpec, store: Store, index: Mapping[str, int], parts: Mapping[str, Part]
) -> Json:
    """Return the task's groups and numbers, where a loss needs them.

    Numbers of photos that are held out stay unknown to the training.
    """
    if spec.facts is None:
        return {}
    from trainers.data import Numbers  # noqa: PLC0415

    table = tables.read(store.here(spec.facts))
    rows = np.array([index.get(name, -1) for name in table["sample_id"].to_pylist()], np.int64)
    is_prepared = rows >= 0
    facts: Json = {}
    if "group" in table.column_names:
        groups = np.full(len(index), -1, np.int64)
        groups[rows[is_prepared]] = table["group"].to_numpy()[is_prepared]
        facts["groups"] = groups
    borders = json.loads((table.schema.metadata or {}).get(BORDERS.encode(), b"{}"))
    learned = np.concatenate([parts["train"].rows, parts["val"].rows])
    numbers = {}
    for name, of_label in borders.items():
        known = np.full(len(index), np.nan)
        known[rows[is_prepared]] = table[f"number_{name}"].to_numpy()[is_prepared]
        values = np.full(len(index), np.nan)
        values[learned] = known[learned]
        numbers[name] = Numbers(values, tuple(of_label))
    if numbers:
        facts["numbers"] = numbers
    return facts


def _mixed(sample_ids: Sequence[str], pairs: Any) -> Any:
    """Return the extra samples of offline MixUp as rows, each with both parents."""
    rows = []
    for number, (a, b) in enumerate(pairs.tolist()):
        parents = {"parent_a": sample_ids[a], "parent_b": sample_ids[b], "weight_a": 0.5}
        rows.append({"sample_id": f"mixup/{number}", **parents})
    return tables.from_rows(rows, tables.MIXED)


def _read_parts(spec: TrialSpec, store: Store, index: Mapping[str, int]) -> dict[str, Part]:
    """Return the parts by name, without the photos that preparation quarantined."""
    table = tables.read(store.here(spec.parts))
    rows = np.array([index.get(name, -1) for name in table["sample_id"].to_pylist()], np.int64)
    columns = [table[f"label_{name}"].fill_null(MISSING) for name in spec.label_sizes]
    codes = np.stack([column.to_numpy() for column in columns], axis=1)
    part_of_row = np.array(table["part"].to_pylist(), np.str_)
    parts = {}
    for name in ("train", "val", "holdout"):
        chosen = (part_of_row == name) & (rows >= 0)
        parts[name] = Part(rows[chosen], codes[chosen])
    return parts


def _predictions(spec: TrialSpec, work: Path, photos: Any, part: Part, store: FeatureStore) -> Any:
    from trainers.feature_cache import kept_features  # noqa: PLC0415
    from trainers.inference import load, predict  # noqa: PLC0415
    from trainers.metrics import joint_class  # noqa: PLC0415

    model = load(work).to(spec.device)
    features = kept_features(model, photos.images, photos.sample_ids, store)
    answered = [label for labels in model.head.branches.values() for label in labels]
    columns = [list(spec.label_sizes).index(name) for name in answered]
    sizes = tuple(spec.label_sizes[name] for name in answered)
    targets = joint_class(part.codes[:, columns], sizes)
    probs = predict(model, photos.images, part.rows, device=spec.device, features=features)
    rows = []
    for number, photo in enumerate(part.rows):
        rows.append(
            {
                "trial_id": spec.trial_id,
                "setting": spec.setting,
                "variant": spec.variant,
                "seed": spec.seed,
                "fold": spec.fold,
                "sample_id": photos.sample_ids[photo],
                "split": "val" if spec.fold is None else "oof",
                "target": int(targets[number]),
                "pred": int(probs[number].argmax()),
                "probs": probs[number].tolist(),
            }
        )
    return tables.from_rows(rows, tables.PREDICTIONS)
