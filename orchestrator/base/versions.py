"""The names of the stages, the versions of what they make, and what the quick models see photos with."""

from __future__ import annotations

QUICK_BACKBONE = "tf_efficientnet_lite0"
"""What the audit's quick models see photos with."""


STAGES = (
    "catalog",
    "audit",
    "split",
    "prepare",
    "search",
    "confirm",
    "hypotheses",
    "select",
    "vote",
    "report",
)


VERSIONS: dict[str, int] = (
    dict.fromkeys((*STAGES, "rows", "features"), 1)
    | dict.fromkeys(("prepare", "shard", "search", "confirm", "trial", "vote", "report"), 2)
    | {"catalog": 5, "audit": 4, "split": 2}
)
"""Raise one by hand when the meaning of its stage changes; what was made before is then made again."""
