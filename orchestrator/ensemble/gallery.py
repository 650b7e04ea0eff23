"""Photos that are worth a look: surely wrong, disputed, and likely labelled wrongly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.ensemble.label_noise import Suspect
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.predictions import Predictions

N_PHOTOS = 12
"""Photos of each kind."""
Kind = Literal["sure_wrong", "disputed", "suspect"]


@dataclass(frozen=True)
class PickedPhoto:
    """A photo and what makes it worth a look."""

    kind: Kind
    sample_id: str
    given: int  # joint class that the data state
    answer: int  # of the vote, out of fold
    confidence: float  # mean probability of the answer
    votes: int  # for the answer
    n_votes: int


def pick_photos(
    members: Mapping[str, Predictions],
    weights: Sequence[int],
    rule: str,
    suspects: Iterable[Suspect],
) -> list[PickedPhoto]:
    """Return the photos to look at, at most one of each person and kind.

    Args:
        members: out-of-fold answers in rank order, all on the same samples.
        weights: votes of every member.
        rule: of the vote, hard or soft.
        suspects: likely wrong labels, the most suspect first; the photo that is most surely read
            otherwise stands for the person.
    """
    arms = list(members.values())
    first = arms[0]
    cast = voting.cast([arm.votes for arm in arms], [arm.mean_probs for arm in arms], rule, weights)
    mean = np.average([arm.mean_probs for arm in arms], axis=0, weights=weights)
    every = np.arange(len(cast.pred))
    confidence = mean[every, cast.pred]
    n_votes = sum(weights)

    def picked(kind: Kind, place: int) -> PickedPhoto:
        return PickedPhoto(
            kind,
            first.sample_ids[place],
            int(first.targets[place]),
            int(cast.pred[place]),
            round(float(confidence[place]), 4),
            int(cast.votes[place]),
            n_votes,
        )

    is_wrong = cast.pred != first.targets
    surest = [int(i) for i in np.argsort(-confidence, kind="stable") if is_wrong[i]]
    is_disputed = cast.votes < n_votes
    order = np.lexsort((confidence, cast.votes))
    disputed = [int(i) for i in order if is_disputed[i]]
    place_of = {name: place for place, name in enumerate(first.sample_ids)}
    doubted = []
    for suspect in suspects:
        places = [place_of[name] for name in suspect.sample_ids if name in place_of]
        if places:
            doubted.append(min(places, key=lambda i: mean[i, first.targets[i]]))
    groups = first.groups or first.sample_ids
    photos = [picked("sure_wrong", place) for place in _one_each(surest, groups)]
    photos += [picked("disputed", place) for place in _one_each(disputed, groups)]
    photos += [picked("suspect", place) for place in _one_each(doubted, groups)]
    return photos


def _one_each(places: Iterable[int], groups: Sequence[str]) -> list[int]:
    """Return the first places of different people, as many as are shown."""
    kept: dict[str, int] = {}
    for place in places:
        if len(kept) == N_PHOTOS:
            break
        kept.setdefault(groups[place], place)
    return list(kept.values())
