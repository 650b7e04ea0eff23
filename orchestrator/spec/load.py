"""Reading a spec file: the whole of it is checked before any work, and all problems are told at once."""

from __future__ import annotations

import difflib
import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.catalog.labels import Schema
from data_prep.config import TestTable
from data_prep.section import identity
from orchestrator.base.errors import SpecError
from orchestrator.base.keys import digest
from orchestrator.spec.claims import parse as parse_claim
from orchestrator.spec.messages import nearest, validate
from orchestrator.spec.models import Arm, Experiment, Select, Spec
from orchestrator.spec.search_space import Search, apply, assignments
from orchestrator.spec.yaml_source import (
    Document,
    DocumentError,
    KeyPath,
    Problem,
    load,
    lone_value,
)
from trainers.config import FrozenDeepHead, SingleHead
from trainers.package_names import known_backbones

VARIANT_PATHS = ("data.exclude", "data.split", "data.labels.<label>.train_bins", "prep", "train")
_ALLOWED = re.compile(r"(data\.(exclude|split|labels\.\w+\.train_bins)|prep|train)(\.|$)")
_MAX_ASSIGNMENTS = 256


def read(path: Path, overrides: list[str] | None = None, *, check_roots: bool = True) -> Experiment:
    """Read, override and check a spec file.

    Args:
        path: the YAML file.
        overrides: `--set` texts, "path=value".
        check_roots: whether the data must be there and variants differ; `predict` needs only what was learned, and a
            smoke run makes variants equal that differ in their length.

    Raises:
        DocumentError: with every problem that was found, at its line and column.
    """
    document = load(path)
    changes = dict(_parse_set(text) for text in overrides or [])
    data = apply(document.data, changes) if changes else document.data
    problems: list[Problem] = []
    spec = validate(Spec, data, document, problems)
    arms: dict[str, Arm] = {}
    base = path.resolve().parent
    if spec is not None:
        arms = _arms(spec, document, problems)
        _check_backbones(spec, arms, document, problems)
        _check_names(spec, arms, document, problems)
        _check_frozen(spec, arms, document, problems)
        _check_space(spec, arms, document, problems)
        if check_roots:
            if not problems:
                _check_twins(spec, arms, document, problems)
            _check_roots(spec, base, document, problems)
    if problems or spec is None:
        raise DocumentError(path, problems, document.lines)
    return Experiment(spec, arms, base, changes, "\n".join(document.lines) + "\n")


def _parse_set(text: str) -> tuple[str, Any]:
    path, separator, value = text.partition("=")
    if not separator or not path.strip():
        raise SpecError(f"--set {text}: required path=value, such as train.optimizer.lr=3e-4")
    try:
        return path.strip(), lone_value(value)
    except DocumentError as error:
        raise SpecError(
            f"--set {path.strip()}: {'; '.join(problem.text for problem in error.problems)}"
        ) from None


def _arms(spec: Spec, document: Document, problems: list[Problem]) -> dict[str, Arm]:
    base = Arm(data=spec.data, prep=spec.prep, train=spec.train).model_dump(
        mode="json", by_alias=True
    )
    arms = {}
    for name, changes in spec.variants.items():
        wrong = False
        for path in changes:
            if not _ALLOWED.match(path):
                wrong = True
                mark = document.where(("variants", name, path), key=True)
                problems.append(
                    Problem(
                        *mark,
                        f"variants.{name}: may override {', '.join(VARIANT_PATHS)}; found {path!r}",
                    )
                )
        under: KeyPath = ("variants", name)
        if not wrong:
            if len(changes) == 1:
                under = (*under, next(iter(changes)))
            arm = validate(
                Arm, apply(base, changes), document, problems, under, f"variants.{name}: "
            )
            if arm is not None:
                arms[name] = arm
    return arms


def _check_backbones(
    spec: Spec, arms: dict[str, Arm], document: Document, problems: list[Problem]
) -> None:
    wanted = {arm.train.model.backbone for arm in arms.values()}
    paths: dict[str, KeyPath] = {spec.train.model.backbone: ("train", "model", "backbone")}
    for name, changes in spec.variants.items():
        for path in changes:
            paths.setdefault(
                arms[name].train.model.backbone if name in arms else "", ("variants", name, path)
            )
    for where, space in _spaces(spec.search) if spec.search else []:
        for choice in getattr(space.get("train.model.backbone"), "choice", None) or []:
            wanted.add(str(choice))
            paths.setdefault(str(choice), (*where, "train.model.backbone", "choice"))
    known = set(known_backbones())
    for backbone in sorted(wanted):
        if known and backbone.split(".")[0] not in known:
            close = difflib.get_close_matches(backbone, known, n=3, cutoff=0.5)
            near = f"; nearest: {', '.join(close)}" if close else ""
            mark = document.where(paths.get(backbone, ("train",)))
            problems.append(
                Problem(*mark, f"train.model.backbone: timm has no model {backbone!r}{near}")
            )


def _check_names(
    spec: Spec, arms: dict[str, Arm], document: Document, problems: list[Problem]
) -> None:
    """Check what refers to something else in the spec: claims, member lists, labels."""
    variants, labels = list(spec.variants), list(spec.data.labels)

    def refuse(where: KeyPath, text: str) -> None:
        problems.append(Problem(*document.where(where), text))

    for index, text in enumerate(spec.hypotheses):
        for why in _claim_faults(text, spec, arms):
            refuse(("hypotheses", index), f"hypotheses: {why}")
    if spec.hypotheses and spec.confirm is None:
        refuse(
            ("hypotheses",),
            "hypotheses are judged on confirm's out-of-fold predictions; remove confirm: null",
        )
    _check_members(spec.select, variants, refuse)
    for arm in arms.values():
        _check_alpha(arm, spec, document, problems)
        for where, names in _label_names(arm):
            for name in names:
                if name not in labels:
                    known = f"labels are {', '.join(labels)}{nearest(name, labels)}"
                    refuse(where, f"{'.'.join(map(str, where))}: no label {name!r}; {known}")


def _check_members(
    select: Select, variants: list[str], refuse: Callable[[KeyPath, str], None]
) -> None:
    """Check the variants that a list of members, or of a board's scores, names."""
    listed = select.policy if isinstance(select.policy, list) else []
    if isinstance(select.policy, list) and len(set(listed)) < max(len(listed), 1):
        refuse(
            ("select", "policy"),
            f"select.policy: a list of distinct variants was required, found {listed}",
        )
    for key, name in [("policy", name) for name in listed] + [
        ("scores", name) for name in select.scores or {}
    ]:
        if name not in variants:
            known = f"variants are {', '.join(variants)}{nearest(name, variants)}"
            refuse(("select", key), f"select.{key}: no variant {name!r}; {known}")


def _check_alpha(arm: Arm, spec: Spec, document: Document, problems: list[Problem]) -> None:
    sizes = dict(zip(spec.data.labels, Schema.of(spec.data.labels).sizes, strict=True))
    for name, numbers in _alphas(arm).items():
        if name in sizes and len(numbers) != sizes[name]:
            mark = document.where(("train", "loss", "alpha", name))
            wanted = f"{sizes[name]} numbers were required, one per class, found {len(numbers)}"
            problems.append(Problem(*mark, f"train.loss.alpha.{name}: {wanted}"))


def _claim_faults(text: str, spec: Spec, arms: dict[str, Arm]) -> list[str]:
    """Return what is wrong with a claim: its two arms must answer all labels of the same photos."""
    try:
        claim = parse_claim(text)
    except ValueError as error:
        return [str(error)]
    faults = []
    variants = list(spec.variants)
    labels = list(spec.data.labels)
    for side in dict.fromkeys((claim.better, claim.worse)):
        if side not in variants:
            known = f"variants are {', '.join(variants)}{nearest(side, variants)}"
            faults.append(f"no variant {side!r} in {text!r}; {known}")
            continue
        answered = _head_labels(side, arms[side], spec.search) if side in arms else None
        if answered and set(answered) != set(labels):
            faults.append(
                f"arms that answer {', '.join(labels)} were required in {text!r}, "
                f"the head of {side!r} answers {', '.join(answered)}; remove the claim"
            )
    better, worse = arms.get(claim.better), arms.get(claim.worse)
    if better is not None and worse is not None and better.data.split != worse.data.split:
        faults.append(
            f"arms of one data.split were required in {text!r}, {claim.better!r} and "
            f"{claim.worse!r} are split differently, so no photo can be paired; "
            "submit them as two specs and `compare` the runs on the test set"
        )
    return faults


def _head_labels(name: str, arm: Arm, search: Search | None) -> list[str] | None:
    """Return the labels that a head was told to answer; None for all, and where the search may say otherwise."""
    space, head = search.space_of(name) if search else {}, arm.train.model.head
    if not isinstance(head, SingleHead) or {"train.model.head", "train.model.head.labels"} & set(
        space
    ):
        return None
    return head.labels or None


def _label_names(arm: Arm) -> list[tuple[KeyPath, list[str]]]:
    """Return where an arm names labels, and which."""
    head = arm.train.model.head
    own = head.labels or [] if isinstance(head, SingleHead) else []
    return [
        (("train", "loss", "weights"), list(arm.train.loss.weights)),
        (("train", "loss", "alpha"), list(_alphas(arm))),
        (("train", "model", "head"), own),
    ]


def _alphas(arm: Arm) -> dict[str, list[float]]:
    alpha = getattr(arm.train.loss, "alpha", None)
    return alpha if isinstance(alpha, dict) else {}


def _check_frozen(
    spec: Spec, arms: dict[str, Arm], document: Document, problems: list[Problem]
) -> None:
    """Check that head frozen_deep stands in a variant, on another one that sees the same photos."""
    spaces = _spaces(spec.search) if spec.search else []
    if isinstance(spec.train.model.head, FrozenDeepHead):
        text = "train.model.head: frozen_deep stands on another variant, so it stands in a variant only"
        problems.append(
            Problem(*document.where(("train", "model", "head")), f"{text}; move it there")
        )
        return
    for (where, space), path in itertools.product(
        spaces, ("train.model.head", "train.model.head.name")
    ):
        named = [
            c.get("name") if isinstance(c, dict) else c
            for c in getattr(space.get(path), "choice", [])
        ]
        if "frozen_deep" in named:
            mark, place = document.where((*where, path), key=True), ".".join((*where, path))
            problems.append(
                Problem(*mark, f"{place}: frozen_deep stands in a variant, never in the space")
            )
    for name, arm in arms.items():
        head = arm.train.model.head
        if not isinstance(head, FrozenDeepHead):
            continue
        own, space = (
            document.where(("variants", name)),
            spec.search.space_of(name) if spec.search else {},
        )
        for path in ("train.model.head", "train.model.head.name", "train.model.backbone"):
            if path in space:
                text = f"{path}: may not be searched beside variant {name!r}, whose head frozen_deep rests on one backbone"
                problems.append(
                    Problem(
                        *document.where(("search", "space", path), key=True), f"search.space.{text}"
                    )
                )
        if (why := _bad_source(name, head.source, arms, list(spec.variants))) is not None:
            problems.append(Problem(*own, f"variants.{name}: head frozen_deep, from: {why}"))


def _bad_source(name: str, source: str, arms: dict[str, Arm], variants: list[str]) -> str | None:
    if source not in variants or source == name:
        others = [other for other in variants if other != name]
        return f"another variant was required ({', '.join(others)}), found {source!r}{nearest(source, others)}"
    if source not in arms:
        return None  # its own problem is told
    one, other = arms[name], arms[source]
    if isinstance(other.train.model.head, FrozenDeepHead):
        return f"a variant that trains its backbone was required, {source!r} is frozen_deep itself"
    pairs = {
        "prep": (one.prep, other.prep),
        "data.split": (one.data.split, other.data.split),
        "data.exclude": (one.data.exclude, other.data.exclude),
        "train.model.backbone": (one.train.model.backbone, other.train.model.backbone),
    }
    differ = [path for path, (left, right) in pairs.items() if left != right]
    return f"{source!r} must have the same {', '.join(differ)}, found another" if differ else None


def _check_space(
    spec: Spec, arms: dict[str, Arm], document: Document, problems: list[Problem]
) -> None:
    """Try the space's corners on every variant: paths must exist, values must fit, no setting may go unused."""
    if spec.search is None:
        return
    search, seen = spec.search, set[str]()
    for where, space in _spaces(search):
        for path in space:
            if not path.startswith("train."):
                mark = document.where((*where, path), key=True)
                problems.append(
                    Problem(*mark, f"{'.'.join(where)}: paths begin with train., found {path!r}")
                )
                return
    for name, arm in arms.items():
        space, base = search.space_of(name), arm.model_dump(mode="json", by_alias=True)
        points = assignments(space, limit=_MAX_ASSIGNMENTS, rng=random.Random(0)) if space else []  # noqa: S311 - no secret
        for point in points:
            found: list[Problem] = []
            validate(
                Arm, apply(base, point), document, found, ("search", "space"), "search.space: "
            )
            for problem in found:
                if problem.text not in seen:
                    seen.add(problem.text)
                    problems.append(
                        Problem(*_space_mark(problem.text, search, document), problem.text)
                    )


def _check_twins(
    spec: Spec, arms: dict[str, Arm], document: Document, problems: list[Problem]
) -> None:
    """Check that no two variants resolve to the same settings: each would count for one of them, the other has none."""
    twins: dict[str, str] = {}
    for name, arm in arms.items():
        space = spec.search.space_of(name) if spec.search else {}
        points = assignments(space, limit=_MAX_ASSIGNMENTS, rng=random.Random(0)) if space else [{}]  # noqa: S311 - no secret
        near = digest(
            [_settings(arm, points[0]), {path: repr(entry) for path, entry in space.items()}]
        )
        one = twins.setdefault(near, name)
        if one != name and all(
            _settings(arm, point) == _settings(arms[one], point) for point in points
        ):
            text = f"variants.{name}: settings of its own were required, found those of {one!r}; remove one of the two"
            problems.append(Problem(*document.where(("variants", name), key=True), text))


def _settings(arm: Arm, point: dict[str, Any]) -> dict[str, Any]:
    """Return what an arm resolves to at a point of its space."""
    base = arm.model_dump(mode="json", by_alias=True)
    return identity(Arm.model_validate_json(json.dumps(apply(base, point))))


def _spaces(search: Search) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Return the spaces of a search, each with its place in the document."""
    own: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("search", "variant_spaces", name), dict(entries))
        for name, entries in search.variant_spaces.items()
    ]
    return [(("search", "space"), dict(search.space)), *own]


def _space_mark(text: str, search: Search, document: Document) -> tuple[int, int]:
    places = [(path, (*where, path)) for where, space in _spaces(search) for path in space]
    for path, place in sorted(places, key=lambda one: -len(one[0])):
        if path in text:
            return document.where(place, key=True)
    for path, place in sorted(places, key=lambda one: -len(one[0].rsplit(".", 1)[0])):
        if path.rsplit(".", 1)[0] in text:
            return document.where(place, key=True)
    return document.where(("search", "space"))


def _check_roots(spec: Spec, base: Path, document: Document, problems: list[Problem]) -> None:
    sides: list[tuple[str, Any]] = [("source", spec.data.source)]
    if isinstance(spec.data.test, TestTable):
        sides.append(("test", spec.data.test))
    for side, section in sides:
        root = base / section.root
        if not root.is_dir():
            mark = document.where(("data", side, "root"))
            problems.append(
                Problem(
                    *mark,
                    f"data.{side}.root: required a folder, found none at {root}; a root is "
                    f"relative to the spec's folder",
                )
            )
        elif (table := getattr(section, "table", None)) and not (root / table).is_file():
            mark = document.where(("data", side, "table"))
            problems.append(
                Problem(*mark, f"data.{side}.table: required a file, found none at {root / table}")
            )
