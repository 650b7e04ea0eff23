"""Checks of a spec's own parts: their files are there, the command allows them, and they work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.spec.checks.draft import Draft, values_of
from orchestrator.spec.yaml_source import KeyPath
from trainers.config import Train
from trainers.preflight.own_parts import Job, own_part_problems
from trainers.settings.loss import OwnLoss
from trainers.settings.own_parts import OwnPart, Pinned

_PATHS = {
    "policy": "train.augment.policy",
    "backbone": "train.model.backbone",
    "head": "train.model.head",
    "loss": "train.loss",
}
"""Kind of a part -> its path in a spec."""


def check_code(draft: Draft, pinned: Pinned, *, allow_code: bool | None) -> None:
    """Check that the user's code is there, and that the command may run it.

    Args:
        draft: the spec.
        pinned: its files.
        allow_code: None where nothing of it is run.
    """
    for place, text in pinned.missing.items():
        draft.refuse(place, f"{_dotted(place)}: {text}")
    if allow_code is False and pinned.places:
        place = pinned.places[0]
        names = ", ".join(sorted(pinned.files)) or "this"
        text = f"{names} is code that runs with your rights: read it, then give --allow-code"
        draft.refuse(place, f"{_dotted(place)}: {text}")
    hashes: dict[str, str | None] = {}
    for name, arm in draft.arms.items():
        for part in _own_parts(arm.train):
            if hashes.setdefault(part.file, part.sha256) != part.sha256:
                text = f"one version of {part.file} was required; write the whole part anew"
                draft.refuse(("train",), f"{part.use}: {text}")
        model = arm.train.model
        values = values_of(draft, name, _PATHS["backbone"], model.backbone)
        values += values_of(draft, name, _PATHS["head"], model.head)
        is_own = any(_is_own(value) for value, _ in values)
        for key in ("precision", "compile"):
            if is_own and getattr(arm.train, key) == "auto":
                text = "auto is not tried on code of one's own; name one"
                draft.refuse(("train", key), f"train.{key}: {text}")


def _is_own(value: Any) -> bool:
    """Return True for code of the user, as a section or as a spec writes it."""
    return isinstance(value, OwnPart) or (isinstance(value, dict) and "use" in value)


def _own_parts(train: Train) -> list[OwnPart]:
    """Return the parts of a training that are code of the user."""
    candidates = (train.model.backbone, train.model.head, train.augment.policy, train.loss)
    return [part for part in candidates if isinstance(part, OwnPart)]


def try_code(draft: Draft, code: Mapping[str, Path]) -> None:
    """Try code of the user on small inputs.

    Args:
        draft: the spec.
        code: name -> file; the command allowed them.
    """
    jobs: list[Job] = []
    places: list[KeyPath] = []
    for name, arm in draft.arms.items():
        settings = {
            "policy": arm.train.augment.policy,
            "backbone": arm.train.model.backbone,
            "head": arm.train.model.head,
            "loss": arm.train.loss,
        }
        for kind, path in _PATHS.items():
            for value, place in values_of(draft, name, path, settings[kind]):
                job = _job(value, kind, arm.prep.size, code)
                if job is not None:
                    jobs.append(job)
                    places.append(place)
    if not jobs:
        return
    for job, place, problem in zip(jobs, places, own_part_problems(jobs), strict=True):
        if problem is not None:
            draft.refuse(place, f"{_PATHS[job['kind']]}: {problem}")


def _job(value: Any, kind: str, size: int, code: Mapping[str, Path]) -> Job | None:
    """Return the try of a component; None where it is no code of the user."""
    if isinstance(value, dict) and _is_own(value):
        value = (OwnLoss if kind == "loss" else OwnPart).model_validate(value)
    if not isinstance(value, OwnPart) or value.file not in code:
        return None
    file = str(code[value.file])
    return Job(part=value.model_dump(mode="json"), file=file, kind=kind, size=size)


def _dotted(place: KeyPath) -> str:
    return ".".join(map(str, place))
