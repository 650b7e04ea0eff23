"""Confusions, per-class scores and agreement, from targets and predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.predictions import Predictions, align, by_setting

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """The answer and the true class of each sample, and how many members voted for the answer."""

    sample_ids: list[str]
    targets: Ints  # (N,)
    preds: Ints  # (N,)
    votes: Ints  # (N,) members that voted for `preds`
    member_preds: Ints  # (M, N), -1 where a member did not answer
    probs: Floats | None = None  # (N, C) the members' mean probability, where it is stored


def confusion(targets: Ints, preds: Ints, n_classes: int) -> Ints:
    """Count targets (rows) against predictions (columns).

    Args:
        targets: (N,) in 0..n_classes-1.
        preds: (N,) in 0..n_classes-1.
        n_classes: size of the square.

    Returns:
        (n_classes, n_classes) counts.
    """
    flat = np.bincount(targets * n_classes + preds, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


def marginal(counts: Ints, sizes: tuple[int, ...], position: int) -> Ints:
    """Sum a confusion over the single code into that of one label.

    Args:
        counts: (n_classes, n_classes).
        sizes: classes per label; their product is n_classes.
        position: which label.
    """
    n = len(sizes)
    cube = counts.reshape(*sizes, *sizes)
    kept = (position, n + position)
    return cube.sum(axis=tuple(axis for axis in range(2 * n) if axis not in kept))


def with_label_right(targets: Ints, preds: Ints, sizes: tuple[int, ...], position: int) -> Ints:
    """Return the answers as they were if one label were always right.

    Args:
        targets: (N,) single codes.
        preds: (N,) single codes.
        sizes: classes per label; their product is the number of codes.
        position: which label.

    Returns:
        (N,) single codes: that label of the target, the others of the answer.
    """
    parts = list(np.unravel_index(preds, sizes))
    parts[position] = np.unravel_index(targets, sizes)[position]
    return np.ravel_multi_index(tuple(parts), sizes).astype(np.int64)


def oof_answers(
    predictions: pa.Table,
    members: list[str],
    rule: str,
    n_classes: int,
    weights: list[int] | None = None,
    adjust: Callable[[Predictions], Predictions] | None = None,
) -> Answers | None:
    """Vote on out-of-fold predictions.

    A member's class is the argmax of its mean probability over the checkpoints that held the sample
    out; the vote is `orchestrator.evaluation.vote.cast`. Samples that not every member predicted
    are left out.

    Args:
        predictions: setting, seed, sample_id, target, pred, probs; out-of-fold rows.
        members: settings in rank order.
        rule: hard or soft.
        n_classes: length of a probability vector.
        weights: votes of every member, one each by default.
        adjust: moves the answers of a member as the selection did; None where it did not.

    Returns:
        The answers, or None where there are no rows or the members answer other classes.
    """
    arms = by_setting(predictions.filter(pc.is_valid(predictions["target"])), n_classes)
    if not members or not arms.keys() >= set(members):
        return None
    together = list(align({member: arms[member] for member in members}).values())
    if not together[0].sample_ids:
        return None
    if adjust is not None:
        together = [adjust(arm) for arm in together]
    member_preds = np.stack([arm.votes for arm in together])
    member_probs = [arm.mean_probs for arm in together]
    cast = voting.cast(member_preds, member_probs, rule, weights)
    first = together[0]
    probs = np.average(member_probs, axis=0, weights=weights).astype(np.float64)
    return Answers(first.sample_ids, first.targets, cast.pred, cast.votes, member_preds, probs)


def without_val(predictions: pa.Table, folds: pa.Table) -> pa.Table:
    """Leave out the groups with a photo of role val: their labels chose the settings.

    So do the scores of selection.json. A split that puts one group on both sides loses only the
    photos of role val.

    Args:
        predictions: variant, sample_id and more.
        folds: variant, sample_id, group, role.
    """
    kept = []
    for variant in predictions["variant"].unique().to_pylist():
        rows = predictions.filter(pc.equal(predictions["variant"], variant))
        photos = folds.filter(pc.equal(folds["variant"], variant))
        is_val = pc.equal(photos["role"], "val")
        groups = photos.filter(is_val)["group"].unique().drop_null()
        is_of_group = pc.is_in(photos["group"], value_set=groups)
        is_in_both = pc.and_(is_of_group, pc.equal(photos["role"], "train"))
        left_out = is_val if pc.any(is_in_both).as_py() else pc.or_(is_val, is_of_group)
        names = photos.filter(left_out)["sample_id"].unique()
        kept.append(rows.filter(pc.invert(pc.is_in(rows["sample_id"], value_set=names))))
    return pa.concat_tables(kept) if kept else predictions


def labelled_answers(votes: pa.Table, test_labels: pa.Table) -> Answers | None:
    """Join the vote on the test set with its labels, by sample id."""
    if "part" in test_labels.column_names:  # where a part is public, all are scored on the rest
        test_labels = test_labels.filter(
            pc.fill_null(pc.not_equal(test_labels["part"], "public"), fill_value=True)
        )
    known = dict(
        zip(test_labels["sample_id"].to_pylist(), test_labels["label"].to_pylist(), strict=True)
    )
    rows = [
        row
        for row in votes.to_pylist()
        if known.get(row["sample_id"]) is not None and row["pred"] is not None
    ]
    if not rows:
        return None
    members = [name for name in votes.column_names if name.startswith("pred_")]
    return Answers(
        [row["sample_id"] for row in rows],
        np.array([known[row["sample_id"]] for row in rows], dtype=np.int64),
        np.array([row["pred"] for row in rows], dtype=np.int64),
        np.array([row["votes"] or 0 for row in rows], dtype=np.int64),
        np.array(
            [[-1 if row[name] is None else row[name] for row in rows] for name in members],
            dtype=np.int64,
        ),
    )


def agreement(member_preds: Ints) -> Floats:
    """Return the (M, M) shares of equal answers of two members, on samples that both answered."""
    n = len(member_preds)
    shares = np.full((n, n), np.nan)
    for a in range(n):
        for b in range(n):
            both = (member_preds[a] >= 0) & (member_preds[b] >= 0)
            if both.any():
                shares[a, b] = (member_preds[a] == member_preds[b])[both].mean()
    return shares


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision against recall of one class, from the surest answer to the least sure one."""

    recalls: list[float]
    precisions: list[float]
    average: float  # average precision, the area below the steps


def precision_recall(confidences: Floats, is_class: npt.NDArray[np.bool_]) -> PrecisionRecall:
    """Return the curve of one class; equal confidences are one step.

    Args:
        confidences: (N,) probability of the class.
        is_class: (N,) True where it is right; at least once.
    """
    order = np.argsort(-confidences, kind="stable")
    hits = np.cumsum(is_class[order])
    last = np.flatnonzero(np.diff(confidences[order], append=-1.0))
    precisions = hits[last] / (last + 1)
    recalls = hits[last] / hits[-1]
    average = float((np.diff(recalls, prepend=0.0) * precisions).sum())
    return PrecisionRecall(recalls.tolist(), precisions.tolist(), average)
