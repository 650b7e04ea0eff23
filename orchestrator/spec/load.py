"""Reading a spec file: it is checked completely, and all problems are reported at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orchestrator.base.errors import SpecError
from orchestrator.spec.cross_checks import (
    Draft,
    check_components,
    check_data_roots,
    check_references,
    check_twins,
)
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
from trainers.settings.own_parts import CODE_FOLDER, pin

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
    # a run keeps copies beside its resolved spec
    pinned = pin(data, [path.resolve().parent / CODE_FOLDER, path.resolve().parent, base])
    data = pinned.data
    problems: list[Problem] = []
    arms: dict[str, Arm] = {}
    spec = validate(Spec, data, document, problems)
    if spec is not None:
        arms = _arms(spec, document, problems)
        draft = Draft(spec, arms, document, problems)
        check_code(draft, pinned, allow_code=allow_code)
        check_references(draft)
        if check_roots:
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
