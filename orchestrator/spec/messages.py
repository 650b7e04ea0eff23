"""From pydantic's errors to sentences with a line and a column."""

from __future__ import annotations

import difflib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.spec.yaml_source import Document, KeyPath, Problem

M = TypeVar("M", bound=BaseModel)
JsonSchema = dict[str, Any]
_TAGS = ("name", "layout", "from")
"""Keys whose value chooses the form of a component."""


def validate(
    model: type[M],
    data: Any,
    document: Document,
    problems: list[Problem],
    under: KeyPath = (),
    prefix: str = "",
) -> M | None:
    """Validate data against a model, and add each fault with its place to `problems`.

    Args:
        model: a section of the spec.
        data: plain data.
        document: the file that the data comes from.
        problems: the list to add to.
        under: the place to blame if it is not the data's own, such as a variant's override.
        prefix: the beginning of each message.

    Returns:
        The validated section, or None if there are faults.
    """
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            problems.append(_problem(fault, data, document, under, prefix, model))
        return None


def _problem(
    fault: ErrorDetails,
    data: Any,
    document: Document,
    under: KeyPath,
    prefix: str,
    model: type[BaseModel],
) -> Problem:
    path, parent = _real_path(fault["loc"], data)
    dotted = prefix + ".".join(str(part) for part in path)
    is_unknown_key = fault["type"] == "extra_forbidden"
    text = _sentence(fault, path, dotted)
    if is_unknown_key:
        text = _unknown_key(fault["loc"], path, parent, model)
    if fault["type"] == "union_tag_not_found":
        text = f"{dotted}: {_missing_tag(fault, model)}"
    if fault["type"] == "too_short" and path[-1:] == ("classes",):
        text = (
            f"{dotted}: two classes or more were required, found {_short(fault['input'])}: with one "
            "class there is nothing to tell apart; add photos of another class, or choose another "
            "label"
        )
    where = under or path
    if not where and fault["type"] == "value_error":
        # a rule over several sections begins with the setting that it blames
        where = tuple(text.split(maxsplit=1)[0].strip(":").split("."))
    return Problem(*document.where(where, key=is_unknown_key), text)


def _sentence(fault: ErrorDetails, path: KeyPath, dotted: str) -> str:
    """Return what was required at a path and what was found there."""
    kind = fault["type"]
    context = fault.get("ctx", {})
    value = fault.get("input")
    shown = _short(value)
    if kind == "missing":
        return f"{dotted}: required, found nothing; add {path[-1]}:"
    if kind == "union_tag_invalid":
        known = _listed(context["expected_tags"])
        tag = str(context["tag"])
        return f"{dotted}: required one of {', '.join(known)}; found {tag!r}{nearest(tag, known)}"
    if kind == "literal_error":
        known = _listed(context["expected"].replace(" or ", ", "))
        near = nearest(str(value), known)
        return f"{dotted}: required one of {', '.join(known)}; found {shown}{near}"
    if kind == "value_error":
        return f"{dotted}: {context.get('error', fault['msg'])}".lstrip(": ")
    if kind in {"string_pattern_mismatch", "string_type"}:
        form = _form(str(context.get("pattern") or _TEXTS.get(str(path[-1]), "")))
        if form is not None:
            return f"{dotted}: required {form}, found {shown}"
    message = fault["msg"].replace("Input should be", "required").replace("Value error, ", "")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"{dotted}: {message[0].lower() + message[1:]}, found {shown}{_hint(kind, value)}"


_WORDS = {"a valid array": "a list", "an object": "a mapping"}
"""What pydantic calls a thing -> what YAML calls it."""


def _listed(expected: str) -> list[str]:
    """Return the words of a list as pydantic writes it: 'a', 'b'."""
    return [word.strip("' ") for word in expected.split(",")]


_TEXTS = {"duration": "steps?", "grace": "epochs?", "wall": "minute|"}
"""Keys that are often given as a bare number -> a part of the pattern that they must fit."""


_FORMS = {
    "steps?": "a duration such as '10 epochs' or '500 steps'",
    "epochs?": "whole epochs such as '2 epochs'",
    "minute|": "a time such as '90 minutes' or '2 hours'",
    "{0,62}": "1 to 63 small letters, digits, - and _, the first a letter or a digit",
}
"""A part of a pattern, and what a text that fits the pattern looks like."""


def _form(pattern: str) -> str | None:
    for part, form in _FORMS.items():
        if part in pattern:
            return form
    return None


def _real_path(loc: KeyPath, data: Any) -> tuple[KeyPath, Any]:
    """Return a location without the parts that pydantic adds, and the parent of its last part.

    Pydantic adds the tags of unions.
    """
    path: list[str | int] = []
    value = data
    parent = data
    previous = None  # the value whose tag was passed over
    for index, part in enumerate(loc):
        is_last = index == len(loc) - 1
        if path and value is not previous and _is_tag_of(part, value):
            previous = value
            continue
        if isinstance(value, list):
            is_inside = isinstance(part, int) and part < len(value)
        else:
            is_inside = isinstance(value, dict) and part in value
        if is_inside:
            parent = value
            value = value[part]
            path.append(part)
        elif is_last and isinstance(value, dict) and isinstance(part, str) and not _is_tag(part):
            parent = value
            path.append(part)
    return tuple(path), parent


def _is_tag_of(part: str | int, value: Any) -> bool:
    """Return True if a part of a location is the name that chose the form of a value."""
    return isinstance(value, dict) and part in [value.get(key) for key in _TAGS if key in value]


def _is_tag(part: str) -> bool:
    return "[" in part or part in {"str", "int", "float", "dict", "list", "bool"}


def _missing_tag(fault: ErrorDetails, model: type[BaseModel]) -> str:
    """Say which key chooses the form of a component, and what it may be."""
    key = fault["ctx"]["discriminator"].split("'")[-2]  # 'source' | 'from': the field, its key
    root = model.model_json_schema(by_alias=True)
    tags = [str(_tag(node)) for node in _nodes_at(fault["loc"], root) if _tag(node) is not None]
    return f"{key}: is required, one of {', '.join(tags)}; found {_short(fault['input'])}"


def _unknown_key(loc: KeyPath, path: KeyPath, parent: Any, model: type[BaseModel]) -> str:
    """Say that a key is unknown, or that the named component has no such setting."""
    key = str(path[-1])
    dotted = ".".join(str(part) for part in path)
    known = _fields_at(loc[:-1], model)
    near = nearest(key, known)
    name = parent.get("name", parent.get("layout")) if isinstance(parent, dict) else None
    if isinstance(name, str) and len(path) > 1:
        uses = f"it uses {', '.join(known)}{near}"
        return f"{dotted}: {path[-2]} {name!r} does not use {key!r}; {uses}"
    return f"{dotted}: unknown key {key!r}; known here: {', '.join(known)}{near}"


def _fields_at(loc: KeyPath, model: type[BaseModel]) -> list[str]:
    """Return the keys that a location may have, from the JSON Schema of the model."""
    root = model.model_json_schema(by_alias=True)
    names: set[str] = set()
    for node in _nodes_at(loc, root):
        names |= set(node.get("properties", {}))
    return sorted(names)


def _nodes_at(loc: KeyPath, root: JsonSchema) -> list[JsonSchema]:
    """Return what a schema allows at a location, whose parts may be tags of unions."""
    nodes = [root]
    for part in loc:
        tagged = [node for node in nodes if len(nodes) > 1 and _tag(node) == part]
        children: list[JsonSchema] = []
        for node in nodes:
            children += _children(node, part, root)
        nodes = tagged or children or nodes
    return nodes


def _tag(node: JsonSchema) -> Any:
    """Return the value that tells a member of a union from the others."""
    properties = node.get("properties", {})
    for key in _TAGS:
        if "const" in properties.get(key, {}):
            return properties[key]["const"]
    return None


def _children(node: JsonSchema, part: str | int, root: JsonSchema) -> list[JsonSchema]:
    properties = node.get("properties", {})
    if part in properties:
        return _alternatives(properties[part], root)
    if isinstance(part, int) and "items" in node:
        return _alternatives(node["items"], root)
    if isinstance(node.get("additionalProperties"), dict):
        return _alternatives(node["additionalProperties"], root)
    return []


def _alternatives(node: JsonSchema, root: JsonSchema) -> list[JsonSchema]:
    """Return what a schema stands for: the target of a reference, or the members of a union."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        return _alternatives(root["$defs"][name], root)
    options = node.get("anyOf") or node.get("oneOf")
    if not options:
        return [node]
    leaves: list[JsonSchema] = []
    for option in options:
        leaves += _alternatives(option, root)
    return leaves


def nearest(word: str, known: list[str]) -> str:
    """Return '; did you mean ...?' if a known word is close, else nothing."""
    names_by_part: dict[str, str] = {}
    for name in known:
        for part in (name, *name.split("_")):
            names_by_part[part] = name
    close = difflib.get_close_matches(word, list(names_by_part), n=1, cutoff=0.6)
    return f"; did you mean {names_by_part[close[0]]!r}?" if close else ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(kind: str, value: Any) -> str:
    if isinstance(value, str) and kind in {"int_type", "float_type"}:
        return "; write the number without quotes, units or underscores"
    if isinstance(value, str) and kind == "bool_type":
        return "; write true or false"
    if value is None and kind == "list_type":
        return "; write [] for none"
    return ""
