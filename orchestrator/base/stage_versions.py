"""The names of the stages in the order they run, and the versions of what they make."""

from __future__ import annotations

QUICK_BACKBONE = "tf_efficientnet_lite0"
"""The backbone of the audit's quick models."""

STAGE_NAMES = (
    "catalog",
    "split",
    "audit",
    "prepare",
    "search",
    "confirm",
    "hypotheses",
    "select",
    "vote",
    "report",
)
VERSIONS: dict[str, int] = (
    dict.fromkeys((*STAGE_NAMES, "rows", "features"), 1)
    | dict.fromkeys(("prepare", "shard", "search", "confirm", "trial", "vote", "report"), 2)
    | {"catalog": 6, "audit": 5, "split": 2}
)
"""Raise a version by hand when the meaning of its artifacts changes; they are then made again."""
