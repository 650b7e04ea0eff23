"""Checks of one part of a spec against another part, or against the disk."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.catalog.label_schema import Schema
from data_prep.catalog.photo_listing import require_images, sides, table_of
from data_prep.config import StemLabel, TestTable
from data_prep.errors import DataError, MachineError
from data_prep.roots.bucket_objects import forget_buckets
from data_prep.roots.places import is_file, join
from data_prep.section_base import identity
from orchestrator.base.keys import digest
from orchestrator.spec.claims import parse as parse_claim
from orchestrator.spec.messages import nearest, validate
from orchestrator.spec.models import Arm, Spec
from orchestrator.spec.score import parse_score
from orchestrator.spec.search_space import (
    Choice,
    FloatRange,
    Point,
    Space,
    apply,
    assignments,
    grid_size,
    start_in,
)
from orchestrator.spec.yaml_source import Document, KeyPath, Place, Problem
from trainers.library_names import known_backbones
from trainers.preflight import backbones as backbone_checks
from trainers.preflight.augmentation_policies import Job, policy_problems
from trainers.settings.loss import plain_losses
from trainers.settings.model import (
    Distribution,
    FrozenDeepHead,
    Ordered,
    SingleHead,
    Softmax,
    cut_pixels,
)
from trainers.settings.own_parts import OwnPart

_MAX_ASSIGNMENTS = 256
_MAX_GRID = 1_000_000  # points, which a study keeps in memory
_HEAD = "train.model.head"
_BACKBONE = "train.model.backbone"
_WEIGHTS = "train.model.weights"
_POLICY = "train.augment.policy"
_MARGINS = "train.model.views.margins"
_FOR_VARIANTS = {
    "train.recipe": "write a variant per recipe, or begin with search.start: [{train.recipe: NAME}]",
    _WEIGHTS: "write a variant per file",
    "train.model.weights_sha256": "write a variant per file",
    **dict.fromkeys(
        ("train.model.views", "train.model.views.flip", _MARGINS),
        "the score of a search is of the photo alone; write a variant with views and one without",
    ),
}
"""Settings that no search can choose -> what to do in place of searching them."""


class PlacedSpace(NamedTuple):
    """A search space, and where the spec declares it."""

    where: tuple[str, ...]
    space: Space


@dataclass(frozen=True)
class Draft:
    """A spec whose sections are valid, its valid variants, and the problems found so far."""

    spec: Spec
    arms: dict[str, Arm]
    document: Document
    problems: list[Problem]

    def refuse(self, where: KeyPath, text: str, *, key: bool = False) -> None:
        """Add a problem at a path of the document."""
        self.problems.append(Problem(*self.document.where(where, key=key), text))

    def space_of(self, variant: str) -> Space:
        """Return the search space of a variant; empty without a search."""
        return self.spec.search.space_of(variant) if self.spec.search else {}

    def spaces(self) -> list[PlacedSpace]:
        """Return the shared space and those of single variants."""
        search = self.spec.search
        if search is None:
            return []
        spaces = [PlacedSpace(("search", "space"), dict(search.space))]
        for name, entries in search.variant_spaces.items():
            space = {path: entry for path, entry in entries.items() if entry is not None}
            spaces.append(PlacedSpace(("search", "variant_spaces", name), space))
        return spaces


def check_references(draft: Draft) -> None:
    """Check everything in a spec that names another part of it, or a model."""
    _check_backbones(draft)
    _check_claims(draft)
    _check_score(draft)
    _check_members(draft)
    _check_labels(draft)
    _check_groups(draft)
    _check_frozen(draft)
    _check_grid(draft)
    _check_folds(draft)
    _check_space(draft)


def _check_backbones(draft: Draft) -> None:
    places = _named_backbones(draft)
    known = set(known_backbones())
    for backbone in sorted(places):
        if known and backbone.split(".")[0] not in known:
            close = difflib.get_close_matches(backbone, known, n=3, cutoff=0.5)
            near = f"; nearest: {', '.join(close)}" if close else ""
            text = f"train.model.backbone: timm has no model {backbone!r}{near}"
            draft.refuse(places[backbone], text)


def _named_backbones(draft: Draft) -> dict[str, KeyPath]:
    """Return the models of timm that variants and spaces name, and where."""
    shared = draft.spec.train.model.timm_name
    places: dict[str, KeyPath] = {}
    for name, arm in draft.arms.items():
        backbone = arm.train.model.timm_name
        changes = list(draft.spec.variants[name])
        if backbone is None:
            continue
        if backbone == shared or not changes:
            places[backbone] = ("train", "model", "backbone")
        else:
            places.setdefault(backbone, ("variants", name, changes[0]))
    for where, space in draft.spaces():
        entry = space.get(_BACKBONE)
        choices = entry.choice if isinstance(entry, Choice) else []
        for choice in choices:
            if not isinstance(choice, dict):
                places.setdefault(str(choice), (*where, _BACKBONE, "choice"))
    return places


def _check_claims(draft: Draft) -> None:
    spec = draft.spec
    for index, text in enumerate(spec.hypotheses):
        for fault in _claim_faults(text, draft):
            draft.refuse(("hypotheses", index), f"hypotheses: {fault}")
    if spec.hypotheses and spec.confirm is None:
        text = "hypotheses are judged on confirm's out-of-fold predictions; remove confirm: null"
        draft.refuse(("hypotheses",), text)


def _check_score(draft: Draft) -> None:
    """Check that the variants answer the label that the score is about."""
    label = draft.spec.parsed_score.label
    for name in draft.arms:
        answered = _head_labels(name, draft)
        if label is not None and answered and label not in answered:
            text = (
                f"score {draft.spec.score!r}: variants that answer {label} were required, the head "
                f"of {name!r} answers {', '.join(answered)}; add {label} to its labels, or use "
                "another score"
            )
            draft.refuse(("score",), text)


def _claim_faults(text: str, draft: Draft) -> list[str]:
    """Return what is wrong with a claim.

    Both arms must answer all labels. Their splits may differ, but not in whether they may leak.
    """
    try:
        claim = parse_claim(text)
    except ValueError as error:
        return [str(error)]
    faults = []
    variants = list(draft.spec.variants)
    labels = list(draft.spec.data.labels)
    try:
        parse_score(claim.metric).require_label(labels, "on")
    except ValueError as error:
        faults.append(f"{error} of the claim {text!r}")
    for side in dict.fromkeys((claim.better, claim.worse)):
        if side not in variants:
            known = f"variants are {', '.join(variants)}{nearest(side, variants)}"
            faults.append(f"no variant {side!r} in {text!r}; {known}")
            continue
        answered = _head_labels(side, draft)
        if answered and set(answered) != set(labels):
            faults.append(
                f"arms that answer {', '.join(labels)} were required in {text!r}, "
                f"the head of {side!r} answers {', '.join(answered)}; remove the claim"
            )
    leaking = [side for side in (claim.better, claim.worse) if _may_leak(side, draft)]
    if len(set(leaking)) == 1 and claim.better != claim.worse:
        faults.append(
            f"arms that both keep the photos of a group together were required in {text!r}; "
            f"data.split.strategy random of {leaking[0]!r} puts photos of one group into training "
            "and into judged photos, so its score is too high; give both arms a split of one kind"
        )
    return faults


def _may_leak(variant: str, draft: Draft) -> bool:
    """Return True if a variant's split may put photos of one group on both sides."""
    if variant not in draft.arms:
        return False
    data = draft.arms[variant].data
    return data.split.strategy == "random" and data.group != "sample_id"


def _head_labels(variant: str, draft: Draft) -> list[str] | None:
    """Return the labels that a variant's head names; None for all, or if the search decides."""
    if variant not in draft.arms:
        return None
    head = draft.arms[variant].train.model.head
    is_searched = not {_HEAD, f"{_HEAD}.labels"}.isdisjoint(draft.space_of(variant))
    if is_searched or not isinstance(head, SingleHead):
        return None
    return head.labels or None


def _check_members(draft: Draft) -> None:
    """Check the variants that a list of members, or the scores of a leaderboard, name."""
    select = draft.spec.select
    variants = list(draft.spec.variants)
    named = [("scores", name) for name in select.scores or {}]
    if isinstance(select.policy, list):
        members = select.policy
        if not members or len(set(members)) < len(members):
            text = f"a list of distinct variants was required, found {members}"
            draft.refuse(("select", "policy"), f"select.policy: {text}")
        named += [("policy", name) for name in members]
    for key, name in named:
        if name not in variants:
            known = f"variants are {', '.join(variants)}{nearest(name, variants)}"
            draft.refuse(("select", key), f"select.{key}: no variant {name!r}; {known}")


def _check_labels(draft: Draft) -> None:
    """Check the labels that the losses and heads of the variants name."""
    labels = list(draft.spec.data.labels)
    sizes = Schema.of(draft.spec.data.labels).sizes
    n_classes = dict(zip(labels, sizes, strict=True))
    for arm in draft.arms.values():
        alphas: dict[str, list[float]] = {}
        for loss in plain_losses(arm.train.loss):
            alpha = getattr(loss, "alpha", None)
            alphas |= alpha if isinstance(alpha, dict) else {}
        for name, numbers in alphas.items():
            if name in n_classes and len(numbers) != n_classes[name]:
                required = f"{n_classes[name]} numbers were required, one per class"
                text = f"train.loss.alpha.{name}: {required}, found {len(numbers)}"
                draft.refuse(("train", "loss", "alpha", name), text)
        head = arm.train.model.head
        named: dict[tuple[str, ...], list[str]] = {
            ("train", "loss", "weights"): list(arm.train.loss.weights),
            ("train", "loss", "alpha"): list(alphas),
        }
        if isinstance(head, SingleHead):
            named["train", "model", "head"] = head.labels or []
        elif not isinstance(head, OwnPart):
            named["train", "model", "head", "ordered"] = list(head.ordered)
            _check_ordered(head.ordered, list(alphas), draft)
        for where, names in named.items():
            for name in names:
                if name not in labels:
                    known = f"labels are {', '.join(labels)}{nearest(name, labels)}"
                    draft.refuse(where, f"{'.'.join(where)}: no label {name!r}; {known}")


def _check_groups(draft: Draft) -> None:
    """Check that photos have groups where a setting is about groups."""
    is_alone = draft.spec.data.group == "sample_id"
    for name, arm in draft.arms.items():
        if arm.train.group_photos and is_alone:
            place: KeyPath = ("train", "group_photos")
            if "group_photos" not in draft.document.data.get("train", {}):
                place = ("variants", name)
            text = (
                "train.group_photos: groups of several photos were required, found data.group "
                "sample_id, where every photo is alone; name a group or remove group_photos"
            )
            draft.refuse(place, text)
    _check_group_mean(draft)


def _check_group_mean(draft: Draft) -> None:
    """Check that the mean over groups is the same out of fold and on the test set."""
    named = draft.spec.vote.group_mean
    if not named:
        return
    data = draft.spec.data
    labels = list(data.labels)
    where: KeyPath = ("vote", "group_mean")
    for name in named:
        if name not in labels:
            known = f"labels are {', '.join(labels)}{nearest(name, labels)}"
            draft.refuse(where, f"vote.group_mean: no label {name!r}; {known}")
    if isinstance(data.test, TestTable) and data.test.group is None:
        text = "the groups of the test photos were required, found none; name their column in"
        draft.refuse(where, f"vote.group_mean: {text} data.test.group, or remove group_mean")
    if data.group == "sample_id" or any(_may_leak(name, draft) for name in draft.arms):
        text = "groups that are kept together were required, found data.group sample_id or"
        draft.refuse(where, f"vote.group_mean: {text} data.split.strategy random")


def _check_ordered(ordered: Mapping[str, Ordered], with_alpha: list[str], draft: Draft) -> None:
    """Check that labels whose order a head learns have one, and that nothing else contradicts it."""
    for name, kind in ordered.items():
        label = draft.spec.data.labels.get(name)
        if label is None:
            continue  # reported with the other names
        where = ("train", "model", "head", "ordered", name)
        dotted = ".".join(where)
        if isinstance(label, StemLabel) or label.bins is None:
            text = (
                f"{dotted}: a label with `bins` of a number was required, {name!r} lists classes, "
                "which have no order; remove it, or give the label a column of numbers and bins"
            )
            draft.refuse(where, text)
        elif isinstance(kind, Distribution) and label.train_bins is not None:
            text = (
                f"{dotted}: 'distribution' learns the number itself, so train_bins would move "
                "nothing; remove train_bins, or use corn"
            )
            draft.refuse(where, text)
        if name in with_alpha and not isinstance(kind, Softmax):
            text = (
                f"train.loss.alpha.{name}: weighs classes of focal loss, the branch {name!r} learns "
                f"by {kind.name!r}; remove it, or use balance: class_weights"
            )
            draft.refuse(("train", "loss", "alpha", name), text)


def _check_frozen(draft: Draft) -> None:
    """Check that head frozen_deep is set in a variant, and names one with the same photos."""
    if isinstance(draft.spec.train.model.head, FrozenDeepHead):
        text = "frozen_deep depends on another variant; move it into a variant"
        draft.refuse(("train", "model", "head"), f"train.model.head: {text}")
        return
    for where, space in draft.spaces():
        for path in (_HEAD, f"{_HEAD}.name"):
            if "frozen_deep" in _choice_names(space, path):
                text = "frozen_deep is set in a variant, never in the space"
                draft.refuse((*where, path), f"{'.'.join((*where, path))}: {text}", key=True)
    for name, arm in draft.arms.items():
        head = arm.train.model.head
        if not isinstance(head, FrozenDeepHead):
            continue
        for path in (_HEAD, f"{_HEAD}.name", _BACKBONE):
            if path in draft.space_of(name):
                text = (
                    f"search.space.{path}: cannot be searched beside variant {name!r}, "
                    "whose head frozen_deep depends on one backbone"
                )
                draft.refuse(("search", "space", path), text, key=True)
        fault = _source_fault(name, head.source, draft)
        if fault is not None:
            text = f"variants.{name}: head frozen_deep, from: {fault}"
            draft.refuse(("variants", name), text)


def _choice_names(space: Space, path: str) -> list[Any]:
    """Return the component names that a choice in a space may take."""
    entry = space.get(path)
    if not isinstance(entry, Choice):
        return []
    return [value.get("name") if isinstance(value, dict) else value for value in entry.choice]


def _source_fault(name: str, source: str, draft: Draft) -> str | None:
    """Return why a variant cannot use the backbone of `source`, or None if it can."""
    others = [other for other in draft.spec.variants if other != name]
    if source not in others:
        near = nearest(source, others)
        return f"another variant was required ({', '.join(others)}), found {source!r}{near}"
    if source not in draft.arms:
        return None  # the problem of the source itself is reported
    arm = draft.arms[name]
    trained = draft.arms[source]
    if isinstance(trained.train.model.head, FrozenDeepHead):
        return f"a variant that trains its backbone was required, {source!r} is frozen_deep too"
    differ = []
    if arm.prep != trained.prep:
        differ.append("prep")
    if arm.data.split != trained.data.split:
        differ.append("data.split")
    if arm.data.exclude != trained.data.exclude:
        differ.append("data.exclude")
    if arm.train.model.backbone != trained.train.model.backbone:
        differ.append("train.model.backbone")
    if not differ:
        return None
    return f"{source!r} must have the same {', '.join(differ)}, but they differ"


def _check_space(draft: Draft) -> None:
    """Try the corners of the space on every variant: paths must exist, values must be valid."""
    for where, space in draft.spaces():
        for path in space:
            text = None
            if not path.startswith("train."):
                text = f"paths begin with train., found {path!r}"
            if path in _FOR_VARIANTS:
                text = f"{path} is set in a variant, never in the space; {_FOR_VARIANTS[path]}"
            if text is not None:
                draft.refuse((*where, path), f"{'.'.join(where)}: {text}", key=True)
                return
    reported = set[str]()
    for name, arm in draft.arms.items():
        space = draft.space_of(name)
        base = arm.model_dump(mode="json", by_alias=True)
        for point in _corner_points(space) if space else []:
            faults: list[Problem] = []
            where = ("search", "space")
            validate(Arm, apply(base, point), draft.document, faults, where, "search.space: ")
            for fault in faults:
                if fault.text not in reported:
                    reported.add(fault.text)
                    place = _place_in_space(fault.text, draft)
                    draft.problems.append(Problem(*place, fault.text))


def _check_folds(draft: Draft) -> None:
    """Check that confirm has the folds that a search asks for."""
    search = draft.spec.search
    confirm = draft.spec.confirm
    if search is None or search.folds is None:
        return
    text = None
    if confirm is None:
        text = "the folds of confirm were required, found confirm: null; remove one of the two"
    elif search.folds > len(confirm.seeds) * confirm.folds:
        n_seeds = len(confirm.seeds)
        text = (
            f"at most {n_seeds * confirm.folds} were required, as many as confirm has "
            f"({n_seeds} seeds x {confirm.folds} folds), found {search.folds}"
        )
    if text is not None:
        draft.refuse(("search", "folds"), f"search.folds: {text}")


def check_starts(draft: Draft) -> None:
    """Check that some variant can try every setting of each start point."""
    search = draft.spec.search
    starts = search.start if search else []
    for number, start in enumerate(starts):
        taken = set[str]()
        for name in draft.arms:
            taken |= start_in(draft.space_of(name), start).keys()
        for path in start:
            if path not in taken:
                text = (
                    f"search.start: conditions of {path} that hold at this point were required, "
                    "found none of a variant that do; remove it, or change what they name"
                )
                draft.refuse(("search", "start", number, path), text, key=True)


def _check_grid(draft: Draft) -> None:
    """Check that a grid has a number of points that can be listed."""
    search = draft.spec.search
    if search is None or search.sampler != "grid":
        return
    for where, space in draft.spaces():
        for path, entry in space.items():
            if not isinstance(entry, FloatRange) or entry.step is not None:
                continue
            low, high = entry.float_
            if low < high:
                text = (
                    f"{path}: sampler grid needs a step or a list of choices, found all numbers "
                    f"from {low:g} to {high:g}; add step:, write choice: [{low:g}, ..., {high:g}], "
                    "or use another sampler"
                )
                draft.refuse((*where, path), text, key=True)
        n_points = grid_size(space)
        if n_points > _MAX_GRID:
            draft.refuse(
                where,
                f"sampler grid: at most {_MAX_GRID:,} points were required, found {n_points:,}; "
                "give fewer values or larger steps, or use another sampler",
                key=True,
            )


def _corner_points(space: Space) -> list[Point]:
    rng = random.Random(0)  # noqa: S311 - no secret
    return assignments(space, limit=_MAX_ASSIGNMENTS, rng=rng)


def _place_in_space(text: str, draft: Draft) -> Place:
    """Return the place of the entry that a message names, by its path or by the parent of that."""
    places: dict[str, KeyPath] = {}
    for where, space in draft.spaces():
        for path in space:
            places.setdefault(path, (*where, path))
    parents: dict[str, KeyPath] = {}
    for path, place in places.items():
        parents.setdefault(path.rsplit(".", 1)[0], place)
    for candidates in (places, parents):
        for path in sorted(candidates, key=len, reverse=True):
            if path in text:
                return draft.document.where(candidates[path], key=True)
    return draft.document.where(("search", "space"))


def check_twins(draft: Draft) -> None:
    """Check that no two variants resolve to the same settings: one of them would have no result."""
    first_names: dict[str, str] = {}
    for name, arm in draft.arms.items():
        space = draft.space_of(name)
        points = _corner_points(space) if space else [{}]
        entries = {path: repr(entry) for path, entry in space.items()}
        key = digest([_settings(arm, points[0]), entries])
        first = first_names.setdefault(key, name)
        if first == name:
            continue
        other = draft.arms[first]
        if all(_settings(arm, point) == _settings(other, point) for point in points):
            text = f"settings of its own were required, found those of {first!r}"
            text = f"variants.{name}: {text}; remove one of the two"
            draft.refuse(("variants", name), text, key=True)


def _settings(arm: Arm, point: Point) -> Point:
    """Return what an arm resolves to at a point of its space."""
    data = apply(arm.model_dump(mode="json", by_alias=True), point)
    return identity(Arm.model_validate_json(json.dumps(data)))


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


def values_of(draft: Draft, name: str, path: str, value: Any) -> list[tuple[Any, KeyPath]]:
    """Return what a variant may set a path to, and where the spec says so."""
    changes = [key for key in draft.spec.variants[name] if path.startswith(key)]
    place: KeyPath = tuple(path.split("."))
    if changes:
        place = ("variants", name, changes[0])
    values: list[tuple[Any, KeyPath]] = [(value, place)]
    entry = draft.space_of(name).get(path)
    if isinstance(entry, Choice):
        values += [(choice, ("search", "space", path)) for choice in entry.choice]
    return values


def check_data_roots(draft: Draft, base: Path) -> None:
    """Check that the folders and tables of the data exist; roots are relative to `base`.

    A bucket is listed anew: a notebook may have listed it before photos were added, or was denied
    before it had the keys.
    """
    forget_buckets()
    for side, section in sides(draft.spec.data):
        try:
            require_images(section, base, side)
        except DataError as error:
            draft.refuse(tuple(error.path.split(".")), str(error))
            continue
        if table := table_of(section):
            _check_table(draft, side, join(base, section.root, table))


def _check_table(draft: Draft, side: str, place: str) -> None:
    try:
        problem = None if is_file(place) else f"required a file, found none at {place}"
    except MachineError as error:  # a bucket may list an object and refuse it
        problem = str(error)
    if problem:
        draft.refuse(("data", side, "table"), f"data.{side}.table: {problem}")
