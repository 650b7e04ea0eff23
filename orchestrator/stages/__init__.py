"""The stages of a run, one module each, with what only they need."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.base.stage_versions import STAGE_NAMES, VERSIONS
from orchestrator.planning.stage import Found, Stage, find_nothing
from orchestrator.stages import audit, catalog, confirm, prepare, search, split

_FIND: dict[str, Callable[..., Found]] = {
    "catalog": catalog.find,
    "split": split.find,
    "audit": audit.find,
    "prepare": prepare.find,
    "search": search.find,
    "confirm": confirm.find,
}

STAGES: tuple[Stage, ...] = tuple(
    Stage(name, VERSIONS[name], f"{__name__}.{name}", _FIND.get(name, find_nothing))
    for name in STAGE_NAMES
)
"""In the order they run. The modules imported above import nothing heavy, for `plan` and `gc`."""
