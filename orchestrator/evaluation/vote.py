"""The vote: each member one class per photo, joined by id, ties by a stated rule."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.catalog.labels import Schema
from orchestrator.base.errors import UserError
from orchestrator.store import tables

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
TIE_RULE = "highest summed probability of the members, then the better-ranked member"
CHUNK = 65_536
"""Rows at a time: a few MB of ballots."""
_NAMED = 20


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
        probs: per member (N, C), in anything that rows can be taken from, such as an array or a memory map; read for
            tied rows only under the hard rule.
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
        own = [np.asarray(one[start : start + CHUNK]).astype(np.int64) for one in preds]
        ballots = np.zeros((len(rows), n_classes), np.int32)
        flat = ballots.reshape(-1)
        base = np.arange(len(rows)) * n_classes
        for pred, count in zip(own, counts, strict=True):
            flat[base + pred] += count  # a member names one class per row, so no place stands twice
        if rule == "soft":
            found = _summed(probs, counts, rows, n_classes).argmax(1)
            votes.votes[rows] = flat[base + found]
        else:
            top = ballots.max(1)
            found = ballots.argmax(1)
            tied = np.flatnonzero((ballots == top[:, None]).sum(1) > 1)
            if len(tied):
                sums = _summed(probs, counts, rows[tied], n_classes)
                leading = ballots[tied] == top[tied, None]
                found[tied] = _break_ties(leading, sums, [pred[tied] for pred in own])
            votes.votes[rows] = top
            votes.tie[rows[tied]] = True
        votes.pred[rows] = found
    return votes


def _summed(
    probs: Sequence[Any], counts: Sequence[int], rows: Ints, n_classes: int
) -> NDArray[np.float64]:
    total = np.zeros((len(rows), n_classes))
    for one, count in zip(probs, counts, strict=True):
        total += count * one[rows].astype(np.float64)
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


def align(ids: Sequence[str], member: str, found: Mapping[str, Any] | Sequence[str]) -> Ints:
    """Return where each id stands among a member's rows.

    Raises:
        UserError: an id is missing, too many or double, with names.
    """
    names = list(found)
    wanted = list(ids)
    place = {name: at for at, name in enumerate(names)}
    if names == wanted and len(place) == len(names):
        return np.arange(len(names))
    asked = set(wanted)
    problems = []
    for what, bad in (
        (
            "twice",
            sorted(name for name, n in Counter(names).items() if n > 1)
            if len(place) < len(names)
            else [],
        ),
        ("missing", sorted(asked - set(place))),
        ("not asked for", sorted(set(place) - asked)),
    ):
        if bad:
            more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            problems.append(f"{len(bad)} {what}: {', '.join(bad[:_NAMED])}{more}")
    if problems:
        raise UserError(
            f"member {member}: one prediction per photo was required, found {'; '.join(problems)}"
        )
    return np.array([place[name] for name in wanted], np.int64)


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
        members: setting -> (sample ids, mean probabilities (n, C)) of the readable photos, in rank order.
        quarantined: sample_id -> reason; such a photo gets the majority class with 0 votes.
        majority: the most frequent training class.
        rule: hard or soft.
        weights: votes of every member, one each by default.

    Returns:
        votes.parquet.
    """
    lost = np.array([sample in quarantined for sample, _ in order], bool)
    ids = [sample for sample, _ in order if sample not in quarantined]
    probs = [found[align(ids, setting, names)] for setting, (names, found) in members.items()]
    preds = [one.argmax(1).astype(np.int64) for one in probs]
    votes = cast(preds, probs, rule, weights)

    def spread(values: NDArray[Any], otherwise: Any) -> NDArray[Any]:
        column = np.full(len(order), otherwise, values.dtype)
        column[~lost] = values
        return column

    tie = spread(votes.tie, otherwise=False)
    outcomes = [
        f"quarantined: {quarantined[sample]}"
        if sample in quarantined
        else "tie"
        if tied
        else "voted"
        for (sample, _), tied in zip(order, tie.tolist(), strict=True)
    ]
    columns = [
        pa.array([sample for sample, _ in order], pa.string()),
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
