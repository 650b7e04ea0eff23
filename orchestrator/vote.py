"""The vote: each member one class per photo, joined by id, ties by a stated rule."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator import tables
from orchestrator.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
TIE_RULE = "highest summed probability of the members, then the better-ranked member"
_NAMED = 3


@dataclass(frozen=True)
class Votes:
    """The answer for every photo."""

    pred: Ints  # (N,)
    votes: Ints  # (N,) members for that class
    tie: NDArray[np.bool_]  # (N,)


def cast(preds: Ints, probs: Sequence[Floats], rule: str = "hard") -> Votes:
    """Let members vote.

    Args:
        preds: (M, N) class of every member, in rank order.
        probs: per member (N, C); read for tied photos only under the hard rule.
        rule: hard, or soft (the class with the highest mean probability).

    Returns:
        One class per photo. A tie goes by TIE_RULE.
    """
    n_members, n_photos = preds.shape
    n_classes = probs[0].shape[1]
    ballots = np.zeros((n_photos, n_classes), np.int64)
    for member in range(n_members):
        ballots[np.arange(n_photos), preds[member]] += 1
    if rule == "soft":
        pred = np.mean(np.stack(list(probs)), axis=0).argmax(1).astype(np.int64)
        return Votes(pred, ballots[np.arange(n_photos), pred], np.zeros(n_photos, bool))
    top = ballots.max(1)
    pred = ballots.argmax(1).astype(np.int64)
    tie = (ballots == top[:, None]).sum(1) > 1
    for at in np.flatnonzero(tie):
        pred[at] = _break_tie(np.flatnonzero(ballots[at] == top[at]), preds[:, at], np.stack([p[at] for p in probs]))
    return Votes(pred, top, tie)


def _break_tie(tied: Ints, preds: Ints, probs: Floats) -> int:
    """Return the winner among tied classes.

    Sums are rounded, so that the order in which members are added cannot decide.
    """
    sums = np.round(probs.astype(np.float64)[:, tied].sum(0), 9)
    best = {int(k) for k in tied[sums == sums.max()]}
    return next(int(k) for k in preds if int(k) in best)


def align(ids: Sequence[str], member: str, found: Mapping[str, Any] | Sequence[str]) -> Ints:
    """Return where each id stands among a member's rows.

    Raises:
        UserError: an id is missing, too many or double, with names.
    """
    names = list(found)
    place = {name: at for at, name in enumerate(names)}
    problems = []
    for what, bad in (
        ("twice", sorted({name for name in names if names.count(name) > 1}) if len(place) < len(names) else []),
        ("missing", sorted(set(ids) - set(place))),
        ("not asked for", sorted(set(place) - set(ids))),
    ):
        if bad:
            problems.append(f"{len(bad)} {what}: {', '.join(bad[:_NAMED])}")
    if problems:
        raise UserError(f"member {member}: one prediction per photo was required, found {'; '.join(problems)}")
    return np.array([place[name] for name in ids], np.int64)


def vote_table(
    order: Sequence[tuple[str, str]],
    members: Mapping[str, tuple[list[str], Floats]],
    *,
    quarantined: Mapping[str, str],
    majority: int,
    rule: str,
) -> pa.Table:
    """Vote on the test photos.

    Args:
        order: (sample_id, ImageID) of every test photo, in the order of the answer.
        members: setting -> (sample ids, mean probabilities (n, C)) of the readable photos, in rank order.
        quarantined: sample_id -> reason; such a photo gets the majority class with 0 votes.
        majority: the most frequent training class.
        rule: hard or soft.

    Returns:
        votes.parquet.
    """
    ids = [sample for sample, _ in order if sample not in quarantined]
    probs = [found[align(ids, setting, names)] for setting, (names, found) in members.items()]
    preds = np.stack([one.argmax(1) for one in probs]).astype(np.int64)
    votes = cast(preds, probs, rule)
    place = {sample: at for at, sample in enumerate(ids)}
    rows = []
    for sample, image in order:
        if (reason := quarantined.get(sample)) is not None:
            rows.append(
                {
                    "sample_id": sample,
                    "ImageID": image,
                    "pred": majority,
                    "votes": 0,
                    "tie": False,
                    "outcome": f"quarantined: {reason}",
                }
            )
            continue
        at = place[sample]
        rows.append(
            {
                "sample_id": sample,
                "ImageID": image,
                "pred": int(votes.pred[at]),
                "votes": int(votes.votes[at]),
                "tie": bool(votes.tie[at]),
                "outcome": "tie" if votes.tie[at] else "voted",
                **{f"pred_{setting}": int(preds[m, at]) for m, setting in enumerate(members)},
            }
        )
    return tables.from_rows(rows, tables.votes_schema(members))


def submission(votes: pa.Table) -> str:
    """Return the answer as CSV: ImageID, ans, in the order of the test table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ImageID", "ans"])
    writer.writerows(zip(votes["ImageID"].to_pylist(), votes["pred"].to_pylist(), strict=True))
    return text.getvalue()
