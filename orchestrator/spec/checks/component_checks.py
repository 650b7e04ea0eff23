"""Checks of a variant's parts by trying them: views, operations, backbones and files of weights."""

from __future__ import annotations

from typing import Any

from orchestrator.spec.checks.draft import Draft, values_of
from orchestrator.spec.yaml_source import KeyPath
from trainers.preflight import backbones as backbone_checks
from trainers.preflight.augmentation_policies import Job, policy_problems
from trainers.settings.model import cut_pixels

_BACKBONE = "train.model.backbone"
_WEIGHTS = "train.model.weights"
_POLICY = "train.augment.policy"
_MARGINS = "train.model.views.margins"


def check_views(draft: Draft) -> None:
    """Check that margins show other parts of the photo: one view would count twice in the mean."""
    problems: dict[KeyPath, str] = {}  # variants may share their views
    for name, arm in draft.arms.items():
        views = arm.train.model.views
        size = arm.prep.size
        views_of_cut = {0: "as the photo itself does"}
        for margin in views.margins if views else ():
            n_pixels = cut_pixels(margin, size)
            if n_pixels in views_of_cut:
                place = values_of(draft, name, _MARGINS, margin)[0][1]
                problems[place] = (
                    f"{_MARGINS}: margins that each cut another number of whole pixels off photos "
                    f"of {size} x {size} were required, found {margin:g}, which cuts {n_pixels} off "
                    f"each side, {views_of_cut[n_pixels]}; leave it out, or cut a pixel more by "
                    f"{(n_pixels + 1) / size:.3g}"
                )
            views_of_cut.setdefault(n_pixels, f"as {margin:g} does")
    for place, text in problems.items():
        draft.refuse(place, text)


def check_components(draft: Draft) -> None:
    """Try lists of operations, backbones that may not take every size, and files of weights."""
    policies: list[tuple[Job, KeyPath]] = []
    backbones: list[tuple[backbone_checks.Job, KeyPath]] = []
    weights: list[tuple[backbone_checks.Job, KeyPath]] = []
    for name, arm in draft.arms.items():
        size = arm.prep.size
        for value, place in values_of(draft, name, _POLICY, arm.train.augment.policy):
            if isinstance(value, list) and value:
                policies.append((Job(operations=value, size=size), place))
        for value, place in _named(values_of(draft, name, _BACKBONE, arm.train.model.backbone)):
            job = backbone_checks.Job(backbone=str(value), size=size)
            if backbone_checks.needs_try(job):
                backbones.append((job, place))
            file = arm.train.model.weights
            if file is not None:
                of_file = values_of(draft, name, _WEIGHTS, file)[0][1]
                weights.append(({**job, "weights": file}, of_file))
    if policies:
        problems = policy_problems([job for job, _ in policies])
        _refuse_all(draft, _POLICY, problems, [place for _, place in policies])
    if backbones:
        problems = backbone_checks.backbone_problems([job for job, _ in backbones])
        _refuse_all(draft, _BACKBONE, problems, [place for _, place in backbones])
    if weights:
        problems = backbone_checks.backbone_problems([job for job, _ in weights])
        _refuse_all(draft, _WEIGHTS, problems, [place for _, place in weights])


def _named(values: list[tuple[Any, KeyPath]]) -> list[tuple[Any, KeyPath]]:
    """Return the values that are names; the others are code of the user."""
    return [(value, place) for value, place in values if isinstance(value, str)]


def _refuse_all(draft: Draft, path: str, problems: list[str | None], places: list[KeyPath]) -> None:
    for problem, place in zip(problems, places, strict=True):
        if problem is not None:
            draft.refuse(place, f"{path}: {problem}")
