"""From pydantic's errors to sentences with a line and a column."""

from __future__ import annotations

import difflib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.spec.yaml_source import Document, KeyPath, Problem

M = TypeVar("M", bound=BaseModel)


def validate(
    model: type[M],
    data: Any,
    document: Document,
    problems: list[Problem],
    under: KeyPath = (),
    prefix: str = "",
) -> M | None:
    """Validate data against a model; what is wrong goes to `problems`, each with its place in the document.

    Args:
        model: a section of the spec.
        data: plain data.
        document: where the data was written.
        problems: is added to.
        under: the place to blame, where it is not the data's own (a variant's override).
        prefix: of every text.
    """
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            problems.append(_problem(fault, data, document, under, prefix, model))
        return None


def _problem(
    fault: Any, data: Any, document: Document, under: KeyPath, prefix: str, model: type[BaseModel]
) -> Problem:
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
        tag, known = (
            str(fault["ctx"]["tag"]),
            [t.strip("' ") for t in fault["ctx"]["expected_tags"].split(",")],
        )
        text = f"{dotted}: required one of {', '.join(known)}; found {tag!r}{nearest(tag, known)}"
    elif kind == "literal_error":
        known = [t.strip("' ") for t in fault["ctx"]["expected"].replace(" or ", ", ").split(",")]
        text = f"{dotted}: required one of {', '.join(known)}; found {found}{nearest(str(fault.get('input')), known)}"
    elif kind == "value_error":
        text = f"{dotted}: {fault['ctx']['error'] if 'error' in fault.get('ctx', {}) else fault['msg']}".lstrip(
            ": "
        )
    elif kind in {"string_pattern_mismatch", "string_type"} and (
        form := _form(_pattern_of(fault, path))
    ):
        text = f"{dotted}: required {form}, found {found}"
    else:
        message = fault["msg"].replace("Input should be", "required").replace("Value error, ", "")
        text = f"{dotted}: {message[0].lower() + message[1:]}, found {found}{_hint(fault)}"
    where = under or path
    if (
        kind == "value_error" and not where
    ):  # a rule over several sections begins with the setting that it blames
        where = tuple(text.split(maxsplit=1)[0].strip(":").split("."))
    line, column = document.where(where, key=key)
    return Problem(line, column, text)


def _pattern_of(fault: Any, path: KeyPath) -> str:
    """Return the pattern that a text does not fit, or that what is no text should have fitted."""
    return str(fault.get("ctx", {}).get("pattern") or _TEXTS.get(str(path[-1]), ""))


_TEXTS = {"duration": "steps?", "grace": "epochs?", "wall": "minute|"}
"""What is easily given as a bare number, and what stands in the pattern that its text must fit."""


def _form(pattern: str) -> str | None:
    """Say what a text that must fit a pattern looks like, for the patterns that people meet."""
    forms = {
        "steps?": "a duration such as '10 epochs' or '500 steps'",
        "epochs?": "whole epochs such as '2 epochs'",
        "minute|": "a time such as '90 minutes' or '2 hours'",
        "{0,62}": "1 to 63 small letters, digits, - and _, the first a letter or a digit",
    }
    return next((form for part, form in forms.items() if part in pattern), None)


def _real_path(loc: tuple[str | int, ...], data: Any) -> tuple[KeyPath, Any]:
    """Drop the parts that pydantic adds to a location (tags of unions) and return the parent of the last one."""
    path: list[str | int] = []
    here, parent = data, data
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        inside = (
            isinstance(part, int) and part < len(here)
            if isinstance(here, list)
            else isinstance(here, dict) and part in here
        )
        if inside:
            parent, here = here, here[part]
            path.append(part)
        elif last and isinstance(here, dict) and isinstance(part, str) and not _is_tag(part):
            parent = here
            path.append(part)
    return tuple(path), parent


def _is_tag(part: str) -> bool:
    return "[" in part or part in {"str", "int", "float", "dict", "list", "bool"}


def _unknown_key(
    loc: tuple[str | int, ...], path: KeyPath, parent: Any, model: type[BaseModel]
) -> str:
    """Say that a key is unknown, or that the named component does not use it, and name the nearest right one."""
    key, dotted = str(path[-1]), ".".join(str(part) for part in path)
    known = _fields_at(loc[:-1], model)
    name = parent.get("name", parent.get("layout")) if isinstance(parent, dict) else None
    if isinstance(name, str) and len(path) > 1:
        return f"{dotted}: {path[-2]} {name!r} does not use {key!r}; it uses {', '.join(known)}{nearest(key, known)}"
    return f"{dotted}: unknown key {key!r}; known here: {', '.join(known)}{nearest(key, known)}"


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
        (
            properties[key]["const"]
            for key in ("name", "layout", "from")
            if "const" in properties.get(key, {})
        ),
        None,
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
    return (
        [leaf for option in options for leaf in _alternatives(option, root)] if options else [node]
    )


def nearest(word: str, known: list[str]) -> str:
    """Return '; did you mean ...?' where a known word is close, or nothing."""
    parts = {part: name for name in known for part in (name, *name.split("_"))}
    close = difflib.get_close_matches(word, list(parts), n=1, cutoff=0.6)
    return f"; did you mean {parts[close[0]]!r}?" if close else ""


def _short(value: Any) -> str:
    text = (
        json.dumps(value, ensure_ascii=False, default=str)
        if not isinstance(value, str)
        else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(fault: Any) -> str:
    value = fault.get("input")
    if isinstance(value, str) and fault["type"] in {"int_type", "float_type"}:
        return "; write the number without quotes, units or underscores"
    if isinstance(value, str) and fault["type"] == "bool_type":
        return "; write true or false"
    return ""
