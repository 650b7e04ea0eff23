"""Repeated looks at one claim: each look after the first is tested at a smaller level.

A claim that is judged after 2, 3, 5 and 8 seeds at level 0.10 each time is wrong in .22 to .24 of
cases. Here the first look has the whole level, and look j later has level / (2 j^2): all of these
later looks together spend less than a third of the level, and much of it on cases that the first
look decided too. By simulation all looks together are wrong in at most .12.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from orchestrator.base.keys import digest
from orchestrator.evaluation.predictions import Predictions
from orchestrator.spec.claims import Claim


def penalty(look: int) -> float:
    """Return the factor of a p value at the first, second, third look at one claim.

    Args:
        look: 1 for the first.
    """
    return 1.0 if look <= 1 else 2.0 * look**2


def claim_key(claim: Claim, data: str) -> str:
    """Return what looks are counted by: the claim, whichever way round, and its data.

    Args:
        claim: of the spec.
        data: hash of the data set's content, or of the test part.
    """
    arms = sorted([claim.better, claim.worse])
    return digest({"arms": arms, "metric": claim.metric, "margin": claim.margin, "data": data})


def labels_key(sample_ids: Sequence[str], labels: Sequence[int]) -> str:
    """Return what looks at test labels are counted by: the test set alone.

    Other training photos, splits, settings or public halves are new looks at the same labels.

    Args:
        sample_ids: of the test photos, in any order.
        labels: class codes, in the order of the ids.
    """
    return digest({"test_labels": sorted(zip(sample_ids, labels, strict=True))})


def predictions_key(*arms: Predictions) -> str:
    """Return a hash of some arms' predictions; the same predictions again are no new look."""
    return digest(sorted(_content(arm) for arm in arms))


def _content(arm: Predictions) -> str:
    order = np.argsort(np.array(arm.sample_ids, object), kind="stable")
    content = hashlib.sha256("\n".join(sorted(arm.sample_ids)).encode())
    content.update(np.ascontiguousarray(arm.targets[order], np.int64).tobytes())
    content.update(np.ascontiguousarray(arm.preds[:, order], np.int64).tobytes())
    return content.hexdigest()
