"""Checks of one part of a spec against another part, or against the disk."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.catalog.label_schema import Schema
from data_prep.catalog.photo_listing import require_images, sides, table_of
from data_prep.config import StemLabel, TestTable
from data_prep.errors import DataError, MachineError
from data_prep.roots.bucket_objects import forget_buckets
from data_prep.roots.places import is_file, join
from orchestrator.spec.checks.draft import Draft
from orchestrator.spec.checks.space_checks import check_space
from orchestrator.spec.claims import parse as parse_claim
from orchestrator.spec.messages import nearest
from orchestrator.spec.score import parse_score
from orchestrator.spec.search_space import (
    Choice,
    Space,
)
from orchestrator.spec.yaml_source import KeyPath
from trainers.library_names import known_backbones
from trainers.settings.loss import plain_losses
from trainers.settings.model import (
    Distribution,
    FrozenDeepHead,
    Ordered,
    SingleHead,
    Softmax,
)
from trainers.settings.own_parts import OwnPart

_HEAD = "train.model.head"
_BACKBONE = "train.model.backbone"


def check_references(draft: Draft) -> None:
    """Check everything in a spec that names another part of it, or a model."""
    _check_backbones(draft)
    _check_claims(draft)
    _check_score(draft)
    _check_members(draft)
    _check_labels(draft)
    _check_groups(draft)
    _check_frozen(draft)
    check_space(draft)


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
