"""The experiment spec: one file, checked whole before any work."""

from __future__ import annotations

import difflib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from data_prep.config import Data, Prep, TestTable
from data_prep.section import Section, Seed, how, identity
from orchestrator.document import Document, DocumentError, Path_, Problem, load
from orchestrator.errors import SpecError
from orchestrator.hypotheses import parse as parse_claim
from orchestrator.keys import setting_id
from orchestrator.space import Confirm, Search, apply, assignments
from orchestrator.track_config import Track
from trainers.backbones import known_backbones
from trainers.config import Train

M = TypeVar("M", bound=BaseModel)
VARIANT_PATHS = ("data.exclude", "data.split", "prep", "train")
_MAX_ASSIGNMENTS = 256

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
VariantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+.-]{0,62}$")]


class Select(Section):
    """Which finalists vote."""

    policy: Literal["robust", "validation", "leaderboard"] | list[str] = "robust"
    members: Annotated[int, Field(ge=1, le=100)] = 3


class Vote(Section):
    """How members' classes become one."""

    rule: Literal["hard", "soft"] = "hard"


class Share(Section):
    """What one worker gets. GPUs may be fractions."""

    cpu: Annotated[float, Field(gt=0, le=1024)] = 1
    gpu: Annotated[float, Field(ge=0, le=64)] = 0


class Resources(Section):
    """How to run; changes no result, so it is part of no key."""

    per_trial: Share = Share()
    per_prep_worker: Share = Share()
    max_concurrent: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class Arm(Section):
    """One variant, resolved: what its trials train on and how."""

    data: Data
    prep: Prep
    train: Train


class Spec(Section):
    """A whole experiment."""

    version: Literal[1] = 1
    name: Name = how()
    seed: Seed = 0
    data: Data
    prep: Prep = Prep()
    train: Train = Train()
    variants: Annotated[dict[VariantName, dict[str, Any]], Field(min_length=1)] = {"base": {}}
    hypotheses: list[str] = []
    search: Search | None = None
    confirm: Confirm | None = Confirm()
    select: Select = Select()
    vote: Vote = Vote()
    track: Track = how(Track())
    resources: Resources = how(Resources())

    @model_validator(mode="after")
    def _robust_needs_confirm(self) -> Self:
        if self.confirm is None and self.select.policy == "robust":
            raise ValueError(
                "select.policy robust rests on out-of-fold predictions, which confirm: null leaves out; "
                "remove confirm: null or choose select.policy validation"
            )
        return self


@dataclass(frozen=True)
class Experiment:
    """A checked spec with its resolved variants. `base` is the folder that data roots are relative to."""

    spec: Spec
    arms: dict[str, Arm]
    base: Path
    overrides: dict[str, Any]  # of --set
    text: str  # the file as given

    def resolved(self) -> dict[str, Any]:
        """Return the spec with every default written out and data roots made absolute, as `resume` reads it."""
        dumped: dict[str, Any] = self.spec.model_dump(mode="json", by_alias=True)
        dumped["data"]["source"]["root"] = str((self.base / self.spec.data.source.root).resolve())
        if isinstance(self.spec.data.test, TestTable):
            dumped["data"]["test"]["root"] = str((self.base / self.spec.data.test.root).resolve())
        return dumped

    def identity(self) -> dict[str, Any]:
        """Return what decides the run's result."""
        return identity(self.spec)

    def setting(self, variant: str, point: dict[str, Any]) -> tuple[str, Arm]:
        """Return id and resolved arm of a variant at one point of its search space."""
        arm = self.arms[variant]
        if point:
            arm = Arm.model_validate_json(json.dumps(apply(arm.model_dump(mode="json", by_alias=True), point)))
        return setting_id(identity(arm)), arm


def read(path: Path, overrides: list[str] | None = None, *, check_roots: bool = True) -> Experiment:
    """Read, override and check a spec file.

    Args:
        path: the YAML file.
        overrides: `--set` texts, "path=value".
        check_roots: whether the data must be there; `predict` needs only what was learned from it.

    Raises:
        DocumentError: with every problem that was found, at its line and column.
    """
    document = load(path)
    changes = dict(_parse_set(text) for text in overrides or [])
    data = apply(document.data, changes) if changes else document.data
    problems: list[Problem] = []
    spec = _validate(Spec, data, document, problems)
    arms: dict[str, Arm] = {}
    base = path.resolve().parent
    if spec is not None:
        arms = _arms(spec, document, problems)
        _check_backbones(spec, arms, document, problems)
        _check_names(spec, arms, document, problems)
        _check_space(spec, arms, document, problems)
        if check_roots:
            _check_roots(spec, base, document, problems)
    if problems or spec is None:
        raise DocumentError(path, problems, document.lines)
    return Experiment(spec, arms, base, changes, "\n".join(document.lines) + "\n")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a spec, for editors."""
    return Spec.model_json_schema(by_alias=True)


def _parse_set(text: str) -> tuple[str, Any]:
    path, separator, value = text.partition("=")
    if not separator or not path.strip():
        raise SpecError(f"--set {text}: required path=value, such as train.optimizer.lr=3e-4")
    from ruamel.yaml import YAML  # noqa: PLC0415 - the one place that reads a lone value

    return path.strip(), YAML(typ="safe", pure=True).load(value)


def _validate(
    model: type[M], data: Any, document: Document, problems: list[Problem], under: Path_ = (), prefix: str = ""
) -> M | None:
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            problems.append(_problem(fault, data, document, under, prefix, model))
        return None


def _problem(fault: Any, data: Any, document: Document, under: Path_, prefix: str, model: type[BaseModel]) -> Problem:
    path, parent = _real_path(fault["loc"], data)
    dotted = prefix + ".".join(str(part) for part in path)
    found = _short(fault.get("input"))
    kind, key = fault["type"], False
    if kind == "extra_forbidden":
        key = True
        text = _unknown_key(fault["loc"], path, parent, model)
    elif kind == "missing":
        text = f"{dotted}: required, found nothing; add {path[-1]}:"
    elif kind == "union_tag_invalid":
        tag, known = str(fault["ctx"]["tag"]), [t.strip("' ") for t in fault["ctx"]["expected_tags"].split(",")]
        text = f"{dotted}: required one of {', '.join(known)}; found {tag!r}{_nearest(tag, known)}"
    elif kind == "literal_error":
        known = [t.strip("' ") for t in fault["ctx"]["expected"].replace(" or ", ", ").split(",")]
        text = f"{dotted}: required one of {', '.join(known)}; found {found}{_nearest(str(fault.get('input')), known)}"
    elif kind == "value_error":
        text = f"{dotted}: {fault['ctx']['error'] if 'error' in fault.get('ctx', {}) else fault['msg']}".lstrip(": ")
    elif kind == "string_pattern_mismatch" and "epochs?" in str(fault["ctx"]["pattern"]):
        text = f"{dotted}: required a duration such as '10 epochs' or '500 steps', found {found}"
    else:
        message = fault["msg"].replace("Input should be", "required").replace("Value error, ", "")
        text = f"{dotted}: {message[0].lower() + message[1:]}, found {found}{_hint(fault)}"
    where = (*under, *path) if not under else under
    line, column = document.where(where, key=key)
    return Problem(line, column, text)


def _real_path(loc: tuple[str | int, ...], data: Any) -> tuple[Path_, Any]:
    """Drop the parts that pydantic adds to a location (tags of unions) and return the parent of the last one."""
    path: list[str | int] = []
    here, parent = data, data
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int) and part < len(here)):
            parent, here = here, here[part]
            path.append(part)
        elif last and isinstance(here, dict) and isinstance(part, str) and not _is_tag(part):
            parent = here
            path.append(part)
    return tuple(path), parent


def _is_tag(part: str) -> bool:
    return "[" in part or part in {"str", "int", "float", "dict", "list", "bool"}


def _unknown_key(loc: tuple[str | int, ...], path: Path_, parent: Any, model: type[BaseModel]) -> str:
    """Say that a key is unknown, or that the named component does not use it, and name the nearest right one."""
    key, dotted = str(path[-1]), ".".join(str(part) for part in path)
    known = _fields_at(loc[:-1], model)
    name = parent.get("name", parent.get("layout")) if isinstance(parent, dict) else None
    if isinstance(name, str) and len(path) > 1:
        return f"{dotted}: {path[-2]} {name!r} does not use {key!r}; it uses {', '.join(known)}{_nearest(key, known)}"
    return f"{dotted}: unknown key {key!r}; known here: {', '.join(known)}{_nearest(key, known)}"


def _fields_at(loc: tuple[str | int, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys that stand at a location, by walking the JSON Schema of the model."""
    root = model.model_json_schema(by_alias=True)
    nodes = [root]
    for part in loc:
        children = [child for node in nodes for child in _children(node, part, root)]
        tagged = [node for node in nodes if _tag(node) == part]
        nodes = children or tagged or nodes
    return sorted({name for node in nodes for name in node.get("properties", {})})


def _tag(node: dict[str, Any]) -> Any:
    """Return the value that tells a member of a union from the others."""
    properties = node.get("properties", {})
    return next(
        (properties[key]["const"] for key in ("name", "layout", "from") if "const" in properties.get(key, {})), None
    )


def _children(node: dict[str, Any], part: str | int, root: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if part in node.get("properties", {}):
        found.append(node["properties"][part])
    elif isinstance(part, int) and "items" in node:
        found.append(node["items"])
    elif isinstance(node.get("additionalProperties"), dict):
        found.append(node["additionalProperties"])
    return [leaf for child in found for leaf in _alternatives(child, root)]


def _alternatives(node: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _alternatives(root["$defs"][node["$ref"].rsplit("/", 1)[1]], root)
    options = node.get("anyOf") or node.get("oneOf")
    return [leaf for option in options for leaf in _alternatives(option, root)] if options else [node]


def _nearest(word: str, known: list[str]) -> str:
    parts = {part: name for name in known for part in (name, *name.split("_"))}
    close = difflib.get_close_matches(word, list(parts), n=1, cutoff=0.6)
    return f"; did you mean {parts[close[0]]!r}?" if close else ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(fault: Any) -> str:
    value = fault.get("input")
    if isinstance(value, str) and fault["type"] in {"int_type", "float_type"}:
        return "; write the number without quotes, units or underscores"
    if isinstance(value, str) and fault["type"] == "bool_type":
        return "; write true or false"
    return ""


def _arms(spec: Spec, document: Document, problems: list[Problem]) -> dict[str, Arm]:
    base = Arm(data=spec.data, prep=spec.prep, train=spec.train).model_dump(mode="json", by_alias=True)
    arms = {}
    for name, changes in spec.variants.items():
        wrong = False
        for path in changes:
            if not any(path == allowed or path.startswith(allowed + ".") for allowed in VARIANT_PATHS):
                wrong = True
                mark = document.where(("variants", name, path), key=True)
                problems.append(
                    Problem(*mark, f"variants.{name}: may override {', '.join(VARIANT_PATHS)}; found {path!r}")
                )
        under: Path_ = ("variants", name)
        if not wrong:
            if len(changes) == 1:
                under = (*under, next(iter(changes)))
            arm = _validate(Arm, apply(base, changes), document, problems, under, f"variants.{name}: ")
            if arm is not None:
                arms[name] = arm
    return arms


def _check_backbones(spec: Spec, arms: dict[str, Arm], document: Document, problems: list[Problem]) -> None:
    wanted = {arm.train.model.backbone for arm in arms.values()}
    paths: dict[str, Path_] = {spec.train.model.backbone: ("train", "model", "backbone")}
    for name, changes in spec.variants.items():
        for path in changes:
            paths.setdefault(arms[name].train.model.backbone if name in arms else "", ("variants", name, path))
    entry = spec.search.space.get("train.model.backbone") if spec.search else None
    for choice in getattr(entry, "choice", None) or []:
        wanted.add(str(choice))
        paths.setdefault(str(choice), ("search", "space", "train.model.backbone", "choice"))
    known = set(known_backbones())
    for backbone in sorted(wanted):
        if known and backbone.split(".")[0] not in known:
            close = difflib.get_close_matches(backbone, known, n=3, cutoff=0.5)
            near = f"; nearest: {', '.join(close)}" if close else ""
            mark = document.where(paths.get(backbone, ("train",)))
            problems.append(Problem(*mark, f"train.model.backbone: timm has no model {backbone!r}{near}"))


def _check_names(spec: Spec, arms: dict[str, Arm], document: Document, problems: list[Problem]) -> None:
    """Check what refers to something else in the spec: claims, member lists, labels."""
    variants, labels = list(spec.variants), list(spec.data.labels)
    for index, claim in enumerate(spec.hypotheses):
        mark = document.where(("hypotheses", index))
        try:
            parsed = parse_claim(claim)
        except ValueError as error:
            problems.append(Problem(*mark, f"hypotheses: {error}"))
            continue
        for arm in (parsed.better, parsed.worse):
            if arm not in variants:
                problems.append(
                    Problem(
                        *mark,
                        f"hypotheses: no variant {arm!r} in {claim!r}; variants are "
                        f"{', '.join(variants)}{_nearest(arm, variants)}",
                    )
                )
    if spec.hypotheses and spec.confirm is None:
        problems.append(
            Problem(
                *document.where(("hypotheses",)),
                "hypotheses are judged on confirm's out-of-fold predictions; remove confirm: null",
            )
        )
    if isinstance(spec.select.policy, list):
        for name in spec.select.policy:
            if name not in variants:
                problems.append(
                    Problem(
                        *document.where(("select", "policy")),
                        f"select.policy: no variant {name!r}; "
                        f"variants are {', '.join(variants)}{_nearest(name, variants)}",
                    )
                )
    for arm in arms.values():
        head_labels = getattr(arm.train.model.head, "labels", None) or []
        for where, names in (
            (("train", "loss", "weights"), arm.train.loss.weights),
            (("train", "model", "head"), head_labels),
        ):
            for name in names:
                if name not in labels:
                    problems.append(
                        Problem(
                            *document.where(where),
                            f"{'.'.join(where)}: no label {name!r}; labels are "
                            f"{', '.join(labels)}{_nearest(name, labels)}",
                        )
                    )
    if isinstance(spec.select.policy, str) and spec.select.policy == "leaderboard":
        test = spec.data.test
        if test is None or test.public is None:
            problems.append(
                Problem(
                    *document.where(("select", "policy")),
                    "select.policy leaderboard sees the public "
                    "half of the test set only; set data.test.public, such as 0.5",
                )
            )


def _check_space(spec: Spec, arms: dict[str, Arm], document: Document, problems: list[Problem]) -> None:
    """Try the space's corners on every variant: paths must exist, values must fit, no setting may go unused."""
    if spec.search is None or not spec.search.space:
        return
    for path in spec.search.space:
        if not path.startswith("train."):
            mark = document.where(("search", "space", path), key=True)
            problems.append(Problem(*mark, f"search.space: paths begin with train., found {path!r}"))
            return
    points = assignments(spec.search.space, limit=_MAX_ASSIGNMENTS, rng=random.Random(0))  # noqa: S311 - no secret
    seen: set[str] = set()
    for arm in arms.values():
        base = arm.model_dump(mode="json", by_alias=True)
        for point in points:
            found: list[Problem] = []
            _validate(Arm, apply(base, point), document, found, ("search", "space"), "search.space: ")
            for problem in found:
                if problem.text not in seen:
                    seen.add(problem.text)
                    line, column = _space_mark(problem.text, spec.search.space, document)
                    problems.append(Problem(line, column, problem.text))


def _space_mark(text: str, space: dict[str, Any], document: Document) -> tuple[int, int]:
    for path in sorted(space, key=len, reverse=True):
        if path in text:
            return document.where(("search", "space", path), key=True)
    parts = {path: path.rsplit(".", 1)[0] for path in space}
    for path, parent in sorted(parts.items(), key=lambda item: -len(item[1])):
        if parent in text:
            return document.where(("search", "space", path), key=True)
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
            problems.append(Problem(*mark, f"data.{side}.table: required a file, found none at {root / table}"))
