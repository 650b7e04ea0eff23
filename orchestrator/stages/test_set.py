"""The test set: its public and private halves, the members' answers on it, and the scores on its labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.cluster.tasks import ray_map
from orchestrator.evaluation import metrics as stats
from orchestrator.evaluation.predictions import Ints, Predictions
from orchestrator.stages.context import Context, majority_class
from orchestrator.store import tables
from orchestrator.store.events import LabelsOpened
from orchestrator.store.ledger import TrialRecord

_PUBLIC_SEED = 0
"""Chosen once for a test set, like a hold-out: another split must not move photos from one half to the other."""

Members = dict[str, tuple[list[str], Any]]  # setting -> (sample ids, mean probabilities (n, C))


@dataclass(frozen=True)
class Board:
    """The test photos in the order of the answer, and which of them are public."""

    order: list[tuple[str, str]]  # (sample_id, ImageID)
    groups: dict[str, str] | None  # None where one is not known
    lost: dict[str, str]  # sample_id -> why nobody can read it
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


def read_board(context: Context, variants: Iterable[str]) -> Board:
    """List the test photos and divide them, by group where every photo's is known.

    Args:
        context: of the run.
        variants: those that answer; a photo is lost where the preparation of one of them failed, as in `predict`.
    """
    from data_prep.catalog.builder import test_order  # noqa: PLC0415

    data = context.experiment.spec.data
    catalog = context.catalog_table()
    order = test_order(data, context.experiment.base, catalog)
    of = dict(zip(catalog["sample_id"].to_pylist(), catalog["group"].to_pylist(), strict=True))
    groups = {sample: of[sample] for sample, _ in order}
    known = all(group is not None for group in groups.values())
    lost = dict(context.require_catalog().result["quarantined"])
    for variant in sorted(set(variants)):
        lost |= context.prepared[variant].result["quarantined"]
    return Board(
        order,
        groups if known else None,
        {sample: lost[sample] for sample, _ in order if sample in lost},
        public_half(
            [sample for sample, _ in order],
            groups if known else None,
            data.test.public if data.test else None,
        ),
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


def open_labels(context: Context, board: Board, part: str, *, by: str) -> dict[str, int] | None:
    """Read the labels of a part of the test set, and write down who looked; None where there are none."""
    from data_prep.catalog.builder import test_labels  # noqa: PLC0415

    labels = test_labels(
        context.experiment.spec.data, context.experiment.base, context.catalog_table()
    )
    if labels is None:
        return None
    wanted = {sample for sample, _ in board.part(part)}
    context.ledger.append(LabelsOpened(part=part, by=by), commit=True)
    pairs = zip(labels["sample_id"].to_pylist(), labels["label"].to_pylist(), strict=True)
    return {sample: label for sample, label in pairs if sample in wanted}


def label_table(board: Board, labels: dict[str, int]) -> pa.Table:
    """Return test_labels.parquet, in the order of the ids."""
    names = sorted(sample for sample, _ in board.order)
    parts = ["public" if sample in board.public else board.judged for sample in names]
    return pa.table(
        {"sample_id": names, "label": [labels[sample] for sample in names], "part": parts},
        schema=tables.TEST_LABELS,
    )


def _predict_checkpoint(job: tuple[str, str, list[int], str]) -> Any:
    """Predict some rows with one checkpoint, a batch of them in memory at a time; runs as a Ray task."""
    from data_prep.preparation.shards import open_rows  # noqa: PLC0415
    from trainers.inference import load, predict  # noqa: PLC0415

    folder, rows, at, device = job
    return predict(
        load(Path(folder)), open_rows(Path(rows)).images, np.array(at, np.int64), device=device
    )


def answers(
    context: Context, trials: Sequence[TrialRecord], samples: list[str]
) -> tuple[Members, list[tuple[TrialRecord, Any]]]:
    """Predict test photos with checkpoints, as Ray tasks.

    Args:
        context: of the run.
        trials: whose checkpoints answer; those of one setting make one member.
        samples: ids of readable photos.

    Returns:
        The members in the order of their first trial, and every checkpoint's probabilities (n, C).
    """
    from data_prep.preparation.shards import open_rows  # noqa: PLC0415

    jobs, share = [], context.experiment.spec.resources.per_trial
    for trial in trials:
        artifact = context.store.get("trial", trial.key)
        artifact.file("weights.safetensors")  # checks its hash
        folder = str(context.rows[trial.variant].path)
        index = open_rows(Path(folder)).index
        jobs.append(
            (str(artifact.path), folder, [index[sample] for sample in samples], share.device)
        )
    found: list[tuple[TrialRecord, Any]] = []
    if samples:
        with context.reporter.task("vote", len(jobs)) as advance:
            answered = ray_map(_predict_checkpoint, jobs, cpu=share.cpu, gpu=share.gpu)
            for trial, probs in zip(trials, answered, strict=True):
                found.append((trial, probs))
                advance(len(found), "checkpoints")
    else:
        found = [(trial, np.zeros((0, context.schema.n_classes), np.float32)) for trial in trials]
    by_setting: dict[str, list[Any]] = {}
    for trial, probs in found:
        by_setting.setdefault(trial.setting, []).append(probs)
    return {
        setting: (samples, np.mean(each, axis=0)) for setting, each in by_setting.items()
    }, found


def prediction_table(found: Sequence[tuple[TrialRecord, Any]], samples: list[str]) -> pa.Table:
    """Return checkpoints' answers on test photos as rows of predictions.parquet, without targets."""
    parts = [tables.PREDICTIONS.empty_table()]
    for trial, probs in found:
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


def scored(
    context: Context, board: Board, part: str, preds: dict[str, int], labels: dict[str, int]
) -> Predictions:
    """Return answers on a part of the test set beside its labels, with groups where they are known."""
    ids = [sample for sample, _ in board.part(part)]
    truth: Ints = np.array([labels[sample] for sample in ids], np.int64)
    given: Ints = np.array([[preds[sample] for sample in ids]], np.int64)
    n_classes = context.schema.n_classes
    groups = [board.groups[sample] for sample in ids] if board.groups else None
    return Predictions(ids, truth, given, n_classes, groups)


def member_preds(context: Context, board: Board, members: Members) -> dict[str, dict[str, int]]:
    """Return per member its class for every photo that it was asked for; the majority class where none can be read."""
    lost = dict.fromkeys(board.lost, majority_class(context))
    return {
        setting: {**lost, **dict(zip(samples, probs.argmax(1).tolist(), strict=True))}
        for setting, (samples, probs) in members.items()
    }


def peek(context: Context, board: Board, trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Return every setting's macro F1 on the public half: what a leaderboard would show."""
    readable = [sample for sample, _ in board.part("public") if sample not in board.lost]
    members, _ = answers(context, trials, readable)
    labels = open_labels(context, board, "public", by="select") or {}
    found = {}
    for setting, preds in member_preds(context, board, members).items():
        one = scored(context, board, "public", preds, labels)
        found[setting] = stats.macro_f1(one.targets, one.preds[0], one.n_classes)
    return found


def board_rows(
    context: Context, board: Board, members: Members, votes: pa.Table, labels: dict[str, int]
) -> list[dict[str, Any]]:
    """Return the public and the private score of the ensemble and of each member, as the contest's table has them."""
    voted = dict(zip(votes["sample_id"].to_pylist(), votes["pred"].to_pylist(), strict=True))
    rows = []
    for who, preds in {"ensemble": voted, **member_preds(context, board, members)}.items():
        row: dict[str, Any] = {"who": who}
        for part in ("public", "private"):
            one = scored(context, board, part, preds, labels)
            row[f"{part}_macro_f1"] = stats.macro_f1(one.targets, one.preds[0], one.n_classes)
            row[f"{part}_accuracy"] = float(np.mean(one.targets == one.preds[0]))
        rows.append(row)
    return rows
