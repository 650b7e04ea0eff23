"""The vote: each member one class per photo, joined by id, ties by a stated rule."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.catalog.label_schema import Schema
from orchestrator.evaluation.predictions import positions
from orchestrator.store import tables

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
TIE_RULE = "highest summed probability of the members, then the better-ranked member"
CHUNK = 65_536
"""Rows at a time: a few MB of ballots."""


@dataclass(frozen=True)
class Votes:
    """The answer for every photo."""

    pred: Ints  # (N,)
    votes: Ints  # (N,) members for that class
    tie: NDArray[np.bool_]  # (N,)


def cast(
    preds: Sequence[NDArray[Any]] | NDArray[Any],
    probs: Sequence[Any],
    rule: str = "hard",
    weights: Sequence[int] | None = None,
) -> Votes:
    """Let members vote, in chunks of rows, so that memory does not grow with their number.

    Args:
        preds: per member in rank order (N,) classes, any integers; arrays or memory maps.
        probs: per member (N, C), an array or a memory map; under the hard rule it is read for tied
            rows only.
        rule: hard, or soft (the class with the highest mean probability).
        weights: votes of every member, one each by default.

    Returns:
        One class per photo. A tie goes by TIE_RULE.
    """
    n_photos = len(preds[0])
    n_classes = probs[0].shape[1]
    counts = list(weights) if weights else [1] * len(preds)
    votes = Votes(
        np.empty(n_photos, np.int64), np.empty(n_photos, np.int64), np.zeros(n_photos, bool)
    )
    for start in range(0, n_photos, CHUNK):
        rows = np.arange(start, min(start + CHUNK, n_photos))
        chunk = [np.asarray(pred[start : start + CHUNK]).astype(np.int64) for pred in preds]
        ballots = np.zeros((len(rows), n_classes), np.int32)
        flat = ballots.reshape(-1)
        base = np.arange(len(rows)) * n_classes
        for pred, count in zip(chunk, counts, strict=True):
            flat[base + pred] += count  # a member names one class per row, so no place twice
        if rule == "soft":
            winners = _summed(probs, counts, rows, n_classes).argmax(1)
            votes.votes[rows] = flat[base + winners]
        else:
            top = ballots.max(1)
            winners = ballots.argmax(1)
            tied = np.flatnonzero((ballots == top[:, None]).sum(1) > 1)
            if len(tied):
                sums = _summed(probs, counts, rows[tied], n_classes)
                leading = ballots[tied] == top[tied, None]
                winners[tied] = _break_ties(leading, sums, [pred[tied] for pred in chunk])
            votes.votes[rows] = top
            votes.tie[rows[tied]] = True
        votes.pred[rows] = winners
    return votes


def _summed(
    probs: Sequence[Any], counts: Sequence[int], rows: Ints, n_classes: int
) -> NDArray[np.float64]:
    total = np.zeros((len(rows), n_classes))
    for member_probs, count in zip(probs, counts, strict=True):
        total += count * member_probs[rows].astype(np.float64)
    return total


def _break_ties(
    leading: NDArray[np.bool_], sums: NDArray[np.float64], preds: Sequence[Ints]
) -> Ints:
    """Return the winners among the leading classes (T, C).

    Sums are rounded, so that the order in which members are added cannot decide.
    """
    ranked = np.where(leading, np.round(sums, 9), -1.0)
    best = ranked == ranked.max(1, keepdims=True)
    winner = best.argmax(1)
    every = np.arange(len(best))
    for pred in reversed(preds):  # the better-ranked member has the last word
        winner = np.where(best[every, pred], pred, winner)
    return winner.astype(np.int64)


def vote_table(
    order: Sequence[tuple[str, str]],
    members: Mapping[str, tuple[list[str], Floats]],
    *,
    quarantined: Mapping[str, str],
    majority: int,
    rule: str,
    weights: Sequence[int] | None = None,
) -> pa.Table:
    """Vote on the test photos.

    Args:
        order: (sample_id, ImageID) of every test photo, in the order of the answer.
        members: setting -> (sample ids, mean probabilities (n, C)) of the readable photos, in rank
            order.
        quarantined: sample_id -> reason; such a photo gets the majority class with 0 votes.
        majority: the most frequent training class.
        rule: hard or soft.
        weights: votes of every member, one each by default.

    Returns:
        votes.parquet.

    Raises:
        UserError: a member did not answer each readable photo once.
    """
    samples = [sample for sample, _ in order]
    readable = [sample for sample in samples if sample not in quarantined]
    probs = []
    for setting, (names, member_probs) in members.items():
        index = positions(readable, names, f"member {setting}", exact=True)
        probs.append(member_probs[index])
    preds = [member_probs.argmax(1).astype(np.int64) for member_probs in probs]
    votes = cast(preds, probs, rule, weights)
    lost = np.array([sample in quarantined for sample in samples], bool)

    def spread(values: NDArray[Any], otherwise: Any) -> NDArray[Any]:
        column = np.full(len(order), otherwise, values.dtype)
        column[~lost] = values
        return column

    tie = spread(votes.tie, otherwise=False)
    outcomes = []
    for sample, is_tied in zip(samples, tie.tolist(), strict=True):
        outcome = "tie" if is_tied else "voted"
        if sample in quarantined:
            outcome = f"quarantined: {quarantined[sample]}"
        outcomes.append(outcome)
    columns = [
        pa.array(samples, pa.string()),
        pa.array([image for _, image in order], pa.string()),
        pa.array(spread(votes.pred, majority)),
        pa.array(spread(votes.votes, 0)),
        pa.array(tie),
        pa.array(outcomes, pa.string()),
        *(pa.array(spread(pred, 0), mask=lost) for pred in preds),
    ]
    return pa.table(columns, schema=tables.votes_schema(members))


def submission(votes: pa.Table) -> str:
    """Return the answer as CSV: ImageID, ans, in the order of the test table."""
    return _csv(["ImageID", "ans"], zip(*_answers(votes), strict=True))


def named_submission(
    votes: pa.Table, schema: Schema, id_column: str, answer: str | Sequence[str]
) -> str:
    """Return the answer as CSV with class names, in the form of a contest's sample.

    Args:
        votes: of `vote_table`.
        schema: of the labels.
        id_column: name of the first column.
        answer: the column of the class, or one column per label.
    """
    names, labels = _answers(votes)
    rows: list[list[str]] = []
    for name, label in zip(names, labels, strict=True):
        if isinstance(answer, str):
            rows.append([name, schema.class_name(label)])
        else:
            codes = schema.decode(label)
            classes = [
                schema.classes[key][code] for key, code in zip(schema.names, codes, strict=True)
            ]
            rows.append([name, *classes])
    columns = [answer] if isinstance(answer, str) else list(answer)
    return _csv([id_column, *columns], rows)


def _answers(votes: pa.Table) -> tuple[list[str], list[int]]:
    return votes["ImageID"].to_pylist(), votes["pred"].to_pylist()


def _csv(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
