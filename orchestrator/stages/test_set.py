"""The test set: its public and private halves, the answers on it, and their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from orchestrator.base.errors import UserError
from orchestrator.cluster.ray_tasks import ray_map
from orchestrator.evaluation import metrics
from orchestrator.evaluation.predictions import GroupMean, Ints, Predictions, group_mean_of
from orchestrator.evaluation.probabilities.adjustment import Adjustment, adjusted
from orchestrator.evaluation.scores_with_intervals import scorer_of
from orchestrator.evaluation.sequential_testing import labels_key, predictions_key
from orchestrator.planning.run_environment import Env
from orchestrator.spec.score import DEFAULT
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.prepare import Prepared
from orchestrator.store import tables
from orchestrator.store.event_types import LabelsOpened
from orchestrator.store.features import feature_store
from orchestrator.store.ledger import TrialRecord
from orchestrator.store.looks import count_look
from orchestrator.store.run_files.selection import BoardRow
from orchestrator.store.store_address import open_store

_PUBLIC_SEED = 0
"""Fixed like a hold-out: another split must not move photos from one half to the other."""

Members = dict[str, tuple[list[str], Any]]  # setting -> (sample ids, mean probabilities (n, C))


class TrialProbs(NamedTuple):
    """A trial and the probabilities of its checkpoint on some photos."""

    trial: TrialRecord
    probs: Any  # (n, C)


@dataclass(frozen=True)
class TestPhotos:
    """The test photos in the order of the answer, and which of them are public."""

    order: list[tuple[str, str]]  # (sample_id, ImageID)
    groups: dict[str, str] | None  # None where one is not known
    lost: dict[str, str]  # sample_id -> why it cannot be read
    public: frozenset[str]  # empty where data.test.public is not set

    def part(self, name: str) -> list[tuple[str, str]]:
        """Return the photos of a part: public, private or whole."""
        return [
            pair
            for pair in self.order
            if name == "whole" or (pair[0] in self.public) == (name == "public")
        ]

    @property
    def judged(self) -> str:
        """Return the part that all are scored on."""
        return "private" if self.public else "whole"


def read_test_photos(
    env: Env, catalog: Catalog, prepare: Prepared, variants: Iterable[str]
) -> TestPhotos:
    """List the test photos and divide them, by group where every photo's is known.

    Args:
        env: of the run.
        catalog: the photos.
        prepare: what the variants could not prepare.
        variants: those that answer; a photo is lost where one of them could not prepare it, as in
            `predict`.
    """
    from data_prep.catalog.labels_of_test_photos import order_of_test_photos  # noqa: PLC0415

    data = env.experiment.spec.data
    table = catalog.table
    order = order_of_test_photos(data, env.experiment.base, table)
    group_of = dict(zip(table["sample_id"].to_pylist(), table["group"].to_pylist(), strict=True))
    groups: dict[str, str] | None = {sample: group_of[sample] for sample, _ in order}
    if groups and None in groups.values():
        groups = None
    lost = dict(catalog.quarantined)
    for variant in sorted(set(variants)):
        lost |= prepare.shards[variant].result["quarantined"]
    samples = [sample for sample, _ in order]
    share = data.test.public if data.test else None
    return TestPhotos(
        order,
        groups,
        {sample: lost[sample] for sample in samples if sample in lost},
        public_half(samples, groups, share),
    )


def public_half(
    samples: Sequence[str], groups: dict[str, str] | None, share: float | None
) -> frozenset[str]:
    """Choose the public part of a test set: a function of the names alone, and never of a label.

    Args:
        samples: ids of the test photos.
        groups: by sample; None to move photos one by one.
        share: of the groups (of the photos) that are public; None for nothing.
    """
    from data_prep.split import deal_share  # noqa: PLC0415

    if share is None:
        return frozenset()
    units = [groups[sample] if groups else sample for sample in samples]
    none = np.zeros((len(units), 0), np.int64)
    chosen = deal_share(
        units, none, share, seed=_PUBLIC_SEED, purpose="public", where="data.test.public"
    )
    return frozenset(
        sample for sample, public in zip(samples, chosen.tolist(), strict=True) if public
    )


def open_labels(
    env: Env, catalog: Catalog, photos: TestPhotos, part: str, *, by: str
) -> dict[str, int] | None:
    """Read the labels of a part of the test set, and write down who looked.

    Returns:
        Sample id -> class; None where the spec names no labels.
    """
    from data_prep.catalog.labels_of_test_photos import labels_of_test_photos  # noqa: PLC0415

    labels = labels_of_test_photos(env.experiment.spec.data, env.experiment.base, catalog.table)
    if labels is None:
        return None
    wanted = {sample for sample, _ in photos.part(part)}
    env.ledger.append(LabelsOpened(part=part, by=by), commit=True)
    pairs = zip(labels["sample_id"].to_pylist(), labels["label"].to_pylist(), strict=True)
    return {sample: label for sample, label in pairs if sample in wanted}


def label_table(photos: TestPhotos, labels: dict[str, int]) -> pa.Table:
    """Return test_labels.parquet, in the order of the ids."""
    names = sorted(sample for sample, _ in photos.order)
    parts = ["public" if sample in photos.public else photos.judged for sample in names]
    return pa.table(
        {"sample_id": names, "label": [labels[sample] for sample in names], "part": parts},
        schema=tables.TEST_LABELS,
    )


class PredictionJob(NamedTuple):
    """What a Ray task needs to predict photos with one checkpoint."""

    store: str
    checkpoint: str  # folder
    rows: str  # folder
    photos: str  # key of the preparation
    numbers: list[int]  # rows to predict
    device: str
    code: list[str]  # files of the user's own parts


def _predict_checkpoint(job: PredictionJob) -> Any:
    """Predict rows with one checkpoint, a batch in memory at a time; runs as a Ray task."""
    from data_prep.preparation.shards import open_rows  # noqa: PLC0415
    from trainers.feature_cache import kept_features  # noqa: PLC0415
    from trainers.inference import load, predict  # noqa: PLC0415
    from trainers.own_parts import allow  # noqa: PLC0415

    store = open_store(job.store)
    allow(*[store.here(file) for file in job.code])
    model = load(store.here(job.checkpoint)).to(job.device)
    rows = open_rows(store.here(job.rows))
    features = kept_features(model, rows.images, rows.sample_ids, feature_store(store, job.photos))
    numbers = np.array(job.numbers, np.int64)
    return predict(model, rows.images, numbers, device=job.device, features=features)


def predict_trials(
    env: Env, prepare: Prepared, trials: Sequence[TrialRecord], samples: list[str]
) -> list[TrialProbs]:
    """Predict test photos with checkpoints, as Ray tasks.

    Args:
        env: of the run.
        prepare: the photos as arrays.
        trials: whose checkpoints answer.
        samples: ids of readable photos.

    Returns:
        Every checkpoint's probabilities (n, C), in the order of the trials.
    """
    from data_prep.preparation.shards import open_rows  # noqa: PLC0415

    jobs = []
    share = env.trial_share
    for trial in trials:
        artifact = env.store.get("trial", trial.key)
        artifact.file("weights.safetensors")  # checks its hash
        folder = str(prepare.rows[trial.variant].path)
        index = open_rows(Path(folder)).index
        jobs.append(
            PredictionJob(
                env.store.name,
                str(artifact.path),
                folder,
                prepare.shards[trial.variant].key,
                [index[sample] for sample in samples],
                share.device,
                env.code,
            )
        )
    if not samples:
        none = np.zeros((0, env.schema.n_classes), np.float32)
        return [TrialProbs(trial, none) for trial in trials]
    predicted: list[TrialProbs] = []
    with env.console.task("vote", len(jobs)) as advance:
        answers = ray_map(
            _predict_checkpoint,
            jobs,
            name="vote",
            cpu=share.cpu,
            gpu=share.least_gpu,
            fork_server=env.fork_server,
        )
        for trial, probs in zip(trials, answers, strict=True):
            predicted.append(TrialProbs(trial, probs))
            advance(len(predicted), "checkpoints")
    return predicted


def group_mean(env: Env) -> GroupMean | None:
    """Return what the spec averages over the photos of a group; None for nothing."""
    sizes = dict(zip(env.schema.names, env.schema.sizes, strict=True))
    return group_mean_of(env.experiment.spec.vote.group_mean, sizes)


def average_groups(
    env: Env, photos: TestPhotos, predicted: Sequence[TrialProbs], samples: list[str]
) -> list[TrialProbs]:
    """Average every checkpoint's answers over groups, where the spec says so.

    Raises:
        UserError: a group of a test photo is not known.
    """
    mean = group_mean(env)
    if mean is None:
        return list(predicted)
    if photos.groups is None:
        raise UserError(
            "vote.group_mean: the group of every test photo was required, found some without one; "
            "fill the column data.test.group, or remove vote.group_mean"
        )
    groups = [photos.groups[sample] for sample in samples]
    return [TrialProbs(trial, mean.over(groups, probs)) for trial, probs in predicted]


def join_members(
    predicted: Sequence[TrialProbs],
    samples: list[str],
    adjustments: Mapping[str, Adjustment] | None = None,
) -> Members:
    """Return the mean probabilities of each setting, in the order of their first trial.

    Args:
        predicted: every checkpoint's answers.
        samples: that it answered.
        adjustments: setting -> how the answers of each of its checkpoints are moved.
    """
    by_setting: dict[str, list[Any]] = {}
    for trial, probs in predicted:
        moved = adjusted(probs, (adjustments or {}).get(trial.setting, ()))
        by_setting.setdefault(trial.setting, []).append(moved)
    return {setting: (samples, np.mean(each, axis=0)) for setting, each in by_setting.items()}


def prediction_table(predicted: Sequence[TrialProbs], samples: list[str]) -> pa.Table:
    """Return checkpoints' answers as rows of predictions.parquet, without targets."""
    parts = [tables.PREDICTIONS.empty_table()]
    for trial, probs in predicted:
        flat = pa.array(np.ascontiguousarray(probs, np.float32).reshape(-1))
        offsets = np.arange(len(samples) + 1, dtype=np.int32) * probs.shape[1]
        facts = {
            name: getattr(trial.started, name) for name in ("setting", "variant", "seed", "fold")
        }
        constant = {"trial_id": trial.trial_id, "split": "test", "target": None, **facts}
        columns = {
            **{
                name: pa.array([value] * len(samples), tables.PREDICTIONS.field(name).type)
                for name, value in constant.items()
            },
            "sample_id": pa.array(samples, pa.string()),
            "pred": pa.array(probs.argmax(1).astype(np.int64)),
            "probs": pa.ListArray.from_arrays(pa.array(offsets), flat),
        }
        parts.append(
            pa.table(
                [columns[name] for name in tables.PREDICTIONS.names], schema=tables.PREDICTIONS
            )
        )
    return pa.concat_tables(parts)


def score_input(
    env: Env, photos: TestPhotos, part: str, preds: dict[str, int], labels: dict[str, int]
) -> Predictions:
    """Return answers on a part of the test set, with its labels, and groups if known."""
    ids = [sample for sample, _ in photos.part(part)]
    truth: Ints = np.array([labels[sample] for sample in ids], np.int64)
    given: Ints = np.array([[preds[sample] for sample in ids]], np.int64)
    n_classes = env.schema.n_classes
    groups = [photos.groups[sample] for sample in ids] if photos.groups else None
    return Predictions(ids, truth, given, n_classes, groups)


def member_preds(
    catalog: Catalog, photos: TestPhotos, members: Members
) -> dict[str, dict[str, int]]:
    """Return setting -> sample id -> class; the majority class for unreadable photos."""
    lost = dict.fromkeys(photos.lost, catalog.majority_class)
    return {
        setting: {**lost, **dict(zip(samples, probs.argmax(1).tolist(), strict=True))}
        for setting, (samples, probs) in members.items()
    }


def answer_public_half(
    env: Env,
    catalog: Catalog,
    prepare: Prepared,
    photos: TestPhotos,
    trials: Sequence[TrialRecord],
    adjustments: Mapping[str, Adjustment] | None = None,
) -> dict[str, Predictions]:
    """Return every setting's answers on the public half beside its labels: what a board scores.

    A photo that nobody can read is answered by the majority class, as in a vote.
    """
    ids = [sample for sample, _ in photos.part("public")]
    readable = [sample for sample in ids if sample not in photos.lost]
    predicted = predict_trials(env, prepare, trials, readable)
    averaged = average_groups(env, photos, predicted, readable)
    members = join_members(averaged, readable, adjustments)
    labels = open_labels(env, catalog, photos, "public", by="select") or {}
    is_readable = np.array([sample not in photos.lost for sample in ids], bool)
    answers = {}
    for setting, (_, probs) in members.items():
        whole = np.zeros((len(ids), env.schema.n_classes), np.float32)
        whole[:, catalog.majority_class] = 1.0
        whole[is_readable] = probs
        preds = dict(zip(ids, whole.argmax(1).tolist(), strict=True))
        answered = score_input(env, photos, "public", preds, labels)
        answers[setting] = replace(answered, probs=whole[None])
    return answers


def count_look_at_labels(env: Env, answers: Sequence[Predictions]) -> str:
    """Write a look at test labels into the store's ledger of looks, and return its key.

    Args:
        env: of the run.
        answers: that were scored, on the same photos.
    """
    first = answers[0]
    key = labels_key(first.sample_ids, first.targets.tolist())
    facts = {"what": "test labels", "run": env.paths.run_id}
    count_look(env.paths.store, key, predictions_key(*answers), facts)
    return key


def leaderboard(
    env: Env,
    catalog: Catalog,
    photos: TestPhotos,
    members: Members,
    votes: pa.Table,
    labels: dict[str, int],
) -> list[BoardRow]:
    """Return the public and the private scores of the ensemble and of each member."""
    voted = dict(zip(votes["sample_id"].to_pylist(), votes["pred"].to_pylist(), strict=True))
    spec = env.experiment.spec
    scorer = scorer_of(spec.parsed_score, env.schema)
    rows = []
    for who, preds in {"ensemble": voted, **member_preds(catalog, photos, members)}.items():
        scores = {}
        for part in ("public", "private"):
            answers = score_input(env, photos, part, preds, labels)
            truth = answers.targets
            given = answers.preds[0]
            scores[f"{part}_macro_f1"] = metrics.macro_f1(truth, given, answers.n_classes)
            scores[f"{part}_accuracy"] = float(np.mean(truth == given))
            if spec.score not in (DEFAULT, "accuracy"):
                value = metrics.score_of(truth, given, answers.n_classes, scorer)
                scores[f"{part}_score"] = value
        rows.append(BoardRow(who=who, **scores))
    return rows
