"""Reading a spec file: it is checked completely, and all problems are reported at once."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.files import file_sha256
from orchestrator.base.errors import SpecError
from orchestrator.spec.checks.component_checks import check_components, check_views
from orchestrator.spec.checks.cross_checks import check_data_roots, check_references
from orchestrator.spec.checks.draft import Draft
from orchestrator.spec.checks.space_checks import check_starts, check_twins
from orchestrator.spec.messages import validate
from orchestrator.spec.models import Arm, Experiment, Spec
from orchestrator.spec.own_code.checks import check_code, try_code
from orchestrator.spec.search_space import apply
from orchestrator.spec.yaml_source import (
    Document,
    DocumentError,
    KeyPath,
    Problem,
    load,
    lone_value,
)
from trainers.finetuning.own_weights import shapes_of
from trainers.finetuning.recipes import recipe_changes
from trainers.settings.own_parts import CODE_FOLDER, pin

_WEIGHTS = "train.model.weights"
VARIANT_PATHS = ("data.exclude", "data.split", "data.labels.<label>.train_bins", "prep", "train")
_ALLOWED = re.compile(r"(data\.(exclude|split|labels\.\w+\.train_bins)|prep|train)(\.|$)")


def read(
    path: Path,
    overrides: list[str] | None = None,
    *,
    check_roots: bool = True,
    need_data: bool = True,
    try_components: bool = False,
    base: Path | None = None,
    allow_code: bool | None = None,
) -> Experiment:
    """Read, override and check a spec file.

    Args:
        path: the YAML file.
        overrides: texts of `--set`, each "path=value".
        check_roots: also require that the data exist and that variants differ. `predict` needs no
            data, and a smoke run makes variants equal that differ only in their duration.
        need_data: False to leave only the data out of that.
        try_components: also try operations and backbones on photos, which takes seconds.
        base: the folder that relative paths of the spec start from, its own by default.
        allow_code: whether code of the user may run; False refuses a spec that names some. None
            where none of it is run.

    Raises:
        DocumentError: the spec has problems; each is listed with line and column.
    """
    document = load(path)
    changes = dict(_parse_set(text) for text in overrides or [])
    data = apply(document.data, changes) if changes else document.data
    base = (base or path.parent).resolve()
    # a run keeps copies below its resolved spec, which names their hashes
    home = path.resolve().parent
    pinned = pin(data, [home, home / CODE_FOLDER, base])
    data = pinned.data
    problems: list[Problem] = []
    arms: dict[str, Arm] = {}
    data = _with_recipes(data)
    for place in _weights_places(data):
        _identify(place, base, document, problems, is_required=check_roots and need_data)
    spec = validate(Spec, data, document, problems)
    if spec is not None:
        arms = _arms(spec, document, problems)
        draft = Draft(spec, arms, document, problems)
        check_code(draft, pinned, allow_code=allow_code)
        check_references(draft)
        if check_roots:
            check_starts(draft)
            check_views(draft)
            if not problems:
                check_twins(draft)
            if try_components and not problems:
                check_components(draft)
                if allow_code:
                    try_code(draft, pinned.files)
            if need_data:
                check_data_roots(draft, base)
    if problems or spec is None:
        raise DocumentError(path, problems, document.lines)
    text = "\n".join(document.lines) + "\n"
    return Experiment(spec, arms, base, changes, text, pinned.files, tuple(pinned.lost))


def _parse_set(text: str) -> tuple[str, Any]:
    path, separator, value = text.partition("=")
    path = path.strip()
    if not separator or not path:
        raise SpecError(f"--set {text}: required path=value, such as train.optimizer.lr=3e-4")
    try:
        return path, lone_value(value)
    except DocumentError as error:
        texts = "; ".join(problem.text for problem in error.problems)
        raise SpecError(f"--set {path}: {texts}") from None


def _with_recipes(data: Any) -> Any:
    """Return a copy of a spec's data in which the variants' recipes are written out."""
    copied = copy.deepcopy(data)
    variants = copied.get("variants")
    for name, changes in variants.items() if isinstance(variants, dict) else ():
        if isinstance(changes, dict):
            variants[name] = recipe_changes(changes)
    return copied


class _WeightsPlace(NamedTuple):
    """Where a spec names a file of weights."""

    holder: dict[str, Any]  # the mapping
    key: str  # in it; that of the sha256 has an ending
    path: KeyPath  # of the mapping


def _weights_places(data: Any) -> list[_WeightsPlace]:
    """Return where a spec's data name a file of weights, or null in the place of one."""
    sections: list[tuple[Any, KeyPath]] = [(data.get("train"), ("train",))]
    places = []
    variants = data.get("variants")
    for name, changes in variants.items() if isinstance(variants, dict) else ():
        path: KeyPath = ("variants", name)
        if isinstance(changes, dict):
            sections.append((changes.get("train"), (*path, "train")))
            sections.append(({"model": changes.get("train.model")}, (*path, "train.model")))
            places.append(_WeightsPlace(changes, _WEIGHTS, path))
    for train, path in sections:
        model = train.get("model") if isinstance(train, dict) else None
        if isinstance(model, dict):
            places.append(_WeightsPlace(model, "weights", (*path, "model")))
    return [place for place in places if place.key in place.holder]


def _identify(
    place: _WeightsPlace,
    base: Path,
    document: Document,
    problems: list[Problem],
    *,
    is_required: bool,
) -> None:
    """Write the absolute path and the sha256 of a file of weights into a spec's data."""
    text = place.holder[place.key]
    known = place.holder.get(f"{place.key}_sha256")
    if text is None:
        place.holder[f"{place.key}_sha256"] = None
    if not isinstance(text, str) or not text.endswith(".safetensors"):
        return  # the model of the section says what is required
    file = (base / text).resolve()
    place.holder[place.key] = str(file)
    if not file.is_file() and not is_required:
        return
    fault = None
    if not file.is_file():
        fault = f"a file was required, found none at {file}"
    else:
        try:
            shapes_of(file)
            actual = file_sha256(file)
            place.holder[f"{place.key}_sha256"] = known or actual
            if known not in {None, actual}:
                fault = (
                    f"sha256 {known} was required, found {actual} at {file}; take the right file"
                )
        except (ValueError, OSError) as error:
            fault = str(error)
    if fault is not None:
        where = document.where((*place.path, place.key))
        problems.append(Problem(*where, f"{_WEIGHTS}: {fault}"))


def _arms(spec: Spec, document: Document, problems: list[Problem]) -> dict[str, Arm]:
    """Return the variants with their overrides applied; those with problems are left out."""
    shared = Arm(data=spec.data, prep=spec.prep, train=spec.train)
    base = shared.model_dump(mode="json", by_alias=True)
    arms = {}
    for name, changes in spec.variants.items():
        refused = [path for path in changes if not _ALLOWED.match(path)]
        for path in refused:
            place = document.where(("variants", name, path), key=True)
            allowed = ", ".join(VARIANT_PATHS)
            text = f"variants.{name}: may override {allowed}; found {path!r}"
            problems.append(Problem(*place, text))
        if refused:
            continue
        under: KeyPath = ("variants", name)
        if len(changes) == 1:
            under = (*under, *changes)
        data = apply(base, changes)
        arm = validate(Arm, data, document, problems, under, f"variants.{name}: ")
        if arm is not None:
            arms[name] = arm
    return arms
