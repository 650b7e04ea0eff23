"""A YAML file read as plain data, with the place of every value.

Only what a spec needs is accepted: one document of mappings, lists and YAML 1.2 scalars. Aliases,
tags, duplicate keys, deep nesting and large files are refused before anything is built from them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from orchestrator.base.errors import SpecError

MAX_SIZE_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_DIGITS = 40  # Python itself refuses to write out integers of some thousand
KeyPath = tuple[str | int, ...]

_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Place(NamedTuple):
    """A place in a file, both numbers from 1."""

    line: int
    column: int


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a spec, and where."""

    line: int  # from 1; 0 where no line is to blame
    column: int
    text: str


@dataclass(frozen=True)
class Document:
    """The data of a YAML file, and the parsed nodes, which know line and column of each value."""

    path: Path
    data: dict[str, Any]
    lines: list[str]
    root: Node

    def where(self, path: KeyPath, *, key: bool = False) -> Place:
        """Return the place of a path, or of its nearest parent in the file.

        Args:
            path: keys and list indices from the top of the file.
            key: return the place of the last key, not of its value.
        """
        node = self.root
        key_node = None
        for part in path:
            child = _child(node, part)
            if child is None:
                return _place(node)
            key_node, node = child
        return _place(key_node if key and key_node is not None else node)


def _child(node: Node, part: str | int) -> tuple[Node | None, Node] | None:
    """Return the key node (None in a list) and the value node of a child, or None."""
    if isinstance(node, SequenceNode):
        if isinstance(part, int) and part < len(node.value):
            return None, node.value[part]
    elif isinstance(node, MappingNode):
        for key_node, value_node in node.value:
            if key_node.value == str(part):
                return key_node, value_node
    return None


def _place(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


class DocumentError(SpecError):
    """All problems of one file, each with line, column and an excerpt."""

    def __init__(self, path: Path, problems: list[Problem], lines: list[str] | None = None) -> None:
        self.problems = sorted(set(problems))
        super().__init__(
            "\n".join(_render(path, problem, lines or []) for problem in self.problems)
        )


def _render(path: Path, problem: Problem, lines: list[str]) -> str:
    place = str(path)
    if problem.line:
        place += f":{problem.line}:{problem.column}"
    text = f"{place}: {problem.text}"
    if 0 < problem.line <= len(lines) and lines[problem.line - 1].strip():
        shown = lines[problem.line - 1].expandtabs(1)[:160]
        gutter = f"{problem.line:>5} | "
        text += f"\n{gutter}{shown}\n{' ' * (len(gutter) - 2)}| {' ' * (problem.column - 1)}^"
    return text


def load(path: Path) -> Document:
    """Read a spec file.

    Raises:
        DocumentError: the file is missing, too large, not YAML, or uses what a spec may not.
    """
    text = _read(path)
    lines = text.splitlines()
    node = _compose(text, path, lines)
    problem = None
    if node is None:
        problem = "required a spec, found an empty file; `init FOLDER` writes one"
    elif isinstance(node, SequenceNode):
        problem = "required a mapping (key: value) at the top, found a list"
    elif not isinstance(node, MappingNode):
        problem = "required a mapping (key: value) at the top, found a single value"
    if node is None or problem is not None:
        raise DocumentError(path, [Problem(1, 1, problem or "")], lines)
    problems: list[Problem] = []
    data = _build(node, problems)
    if problems:
        raise DocumentError(path, problems, lines)
    return Document(path, data, lines, node)


def lone_value(text: str) -> Any:
    """Read one value by the rules of a spec file; an empty text is None.

    Raises:
        DocumentError: the text is no value of a spec.
    """
    node = _compose(text, Path(), text.splitlines())
    if node is None:
        return None
    problems: list[Problem] = []
    value = _build(node, problems)
    if problems:
        raise DocumentError(Path(), problems)
    return value


def _compose(text: str, path: Path, lines: list[str]) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    try:
        _check_events(yaml, text, path, lines)
        node: Node | None = yaml.compose(text)
    except MarkedYAMLError as error:
        raise DocumentError(path, [_syntax(error, lines)], lines) from None
    except YAMLError as error:
        problem = Problem(1, 1, f"required YAML, found: {error}")
        raise DocumentError(path, [problem], lines) from None
    return node


def _read(path: Path) -> str:
    problem = None
    if not path.exists():
        problem = "required a spec file, found nothing there; check the path"
    elif not path.is_file():
        problem = "required a regular file, found a folder, pipe or device"
    elif (size := path.stat().st_size) > MAX_SIZE_BYTES:
        problem = f"a spec has at most {MAX_SIZE_BYTES} bytes, found {size}"
    if problem is not None:
        raise DocumentError(path, [Problem(0, 0, problem)])
    try:
        return path.read_bytes().decode("utf-8-sig")  # drops a byte order mark
    except UnicodeDecodeError as error:
        byte = f"{error.object[error.start]:#04x}"
        problem = f"required UTF-8 text, found byte {byte} at {error.start}"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise DocumentError(path, [Problem(0, 0, problem)])


def _check_events(yaml: YAML, text: str, path: Path, lines: list[str]) -> None:
    """Walk the parser's events, which need no recursion and expand nothing."""
    depth = documents = 0
    for event in yaml.parse(text):
        problem = None
        documents += isinstance(event, DocumentStartEvent)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            problem = "anchors and aliases (&, *) are not part of a spec; write the value out"
        elif getattr(event, "ctag", None) is not None:
            problem = f"tags are not part of a spec, found {event.ctag}; remove it"
        elif depth > MAX_DEPTH:
            problem = f"a spec nests at most {MAX_DEPTH} levels deep; found more"
        elif documents > 1:
            problem = "one file is one experiment; found a second document (---)"
        if problem:
            mark = event.start_mark
            raise DocumentError(path, [Problem(mark.line + 1, mark.column + 1, problem)], lines)


def _syntax(error: MarkedYAMLError, lines: list[str]) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    text = " ".join(part for part in (error.problem, error.context) if part)
    if "\t" in (lines[line - 1][:column] if 0 < line <= len(lines) else ""):
        text = "found a tab; YAML is indented with spaces; replace the tab"
    return Problem(line, column, f"not valid YAML: {text}")


def _build(node: Node, problems: list[Problem]) -> Any:
    """Convert nodes to plain data; add what a spec may not contain to `problems`."""
    if isinstance(node, ScalarNode):
        return _scalar(node, problems)
    if isinstance(node, SequenceNode):
        return [_build(child, problems) for child in node.value]
    mapping: dict[str, Any] = {}
    first_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        place = _place(key_node)
        if not isinstance(key_node, ScalarNode):
            problems.append(Problem(*place, "a key must be plain text"))
            continue
        key = str(key_node.value)
        if key == "<<":
            text = "merge keys (<<) are not part of a spec; write the values out"
            problems.append(Problem(*place, text))
            continue
        first_line = first_lines.setdefault(key, place.line)
        if key in mapping:
            text = f"key {key!r} stands twice, first in line {first_line}; keep one"
            problems.append(Problem(*place, text))
        mapping[key] = _build(value_node, problems)
    return mapping


def _scalar(node: ScalarNode, problems: list[Problem]) -> Any:
    """Read a scalar by the YAML 1.2 core schema."""
    text: str = node.value
    if node.style is not None:  # quoted or a block: text
        return text
    if text in _WORDS:
        return _WORDS[text]
    place = _place(node)
    if _INT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            message = f"a number of at most {MAX_DIGITS} digits was required, found {len(text)}"
            problems.append(Problem(*place, message))
            return text
        # int(text, 0) would refuse 012, which YAML 1.2 reads as 12
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
    is_float = _FLOAT.fullmatch(text) is not None
    if is_float and math.isfinite(float(text)):
        return float(text)
    if is_float or _NOT_FINITE.fullmatch(text):
        problems.append(Problem(*place, f"a finite number was required, found {text}"))
    return text
