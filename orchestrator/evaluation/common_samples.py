"""Comparisons on common samples: arms that answered different photos have different questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.base.errors import UserError
from orchestrator.base.wording import counted
from orchestrator.evaluation.predictions import Predictions, align

_ENOUGH = 0.5
"""Share of the smallest arm that must be common; below it a finding says so."""


def on_common_samples(arms: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Return every arm on the samples that all of them answered, in one order.

    Raises:
        UserError: there is no common sample; no ranking of the arms means anything then.
    """
    aligned = align(arms)
    if aligned and not next(iter(aligned.values())).sample_ids:
        raise UserError(
            f"photos that all of {', '.join(sorted(arms))} predicted were required, found none; "
            "give the variants one data.split"
        )
    return aligned


def little_in_common(sizes: Sequence[int], n_common: int) -> str | None:
    """Return a finding where less than half of the smallest arm's samples are common to all."""
    if not sizes or n_common >= _ENOUGH * min(sizes):
        return None
    return (
        f"Candidates are compared on the {counted(n_common, 'photo')} that all of them predicted, "
        f"of {min(sizes)} to {max(sizes)}: give the variants one data.split."
    )
