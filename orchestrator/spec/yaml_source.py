"""A YAML file read as plain data, with the place of every value.

Only what a spec needs is accepted: one document of mappings, lists and YAML 1.2 scalars. Aliases, tags, duplicate
keys, deep nesting and large files are refused before anything is built from them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
Path_ = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a spec, and where."""

    line: int  # from 1; 0 where no line is to blame
    column: int
    text: str


@dataclass
class Document:
    """The data of a YAML file; `marks` holds (line, column) of every value, `key_marks` those of the keys."""

    path: Path
    data: dict[str, Any]
    lines: list[str]
    marks: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    key_marks: dict[Path_, tuple[int, int]] = field(default_factory=dict)

    def where(self, path: Path_, *, key: bool = False) -> tuple[int, int]:
        """Return line and column of a path, or of its nearest parent that stands in the file."""
        for end in range(len(path), -1, -1):
            here = path[:end]
            marks = self.key_marks if key and end == len(path) else self.marks
            if here in marks:
                return marks[here]
        return (1, 1)


class DocumentError(SpecError):
    """All problems of one file, each with line, column and an excerpt."""

    def __init__(self, path: Path, problems: list[Problem], lines: list[str] | None = None) -> None:
        self.problems = sorted(set(problems))
        super().__init__(
            "\n".join(_render(path, problem, lines or []) for problem in self.problems)
        )


def _render(path: Path, problem: Problem, lines: list[str]) -> str:
    place = f"{path}:{problem.line}:{problem.column}: " if problem.line else f"{path}: "
    text = place + problem.text
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
    if node is None:
        raise DocumentError(
            path,
            [Problem(1, 1, "required a spec, found an empty file; `init FOLDER` writes one")],
            lines,
        )
    if not isinstance(node, MappingNode):
        kind = "a list" if isinstance(node, SequenceNode) else "a single value"
        raise DocumentError(
            path,
            [Problem(1, 1, f"required a mapping (key: value) at the top, found {kind}")],
            lines,
        )
    document = Document(path, {}, lines)
    problems: list[Problem] = []
    document.data = _build(node, (), document, problems)
    if problems:
        raise DocumentError(path, problems, lines)
    return document


def lone_value(text: str) -> Any:
    """Read one value by the rules of a spec file; nothing is None.

    Raises:
        DocumentError: it is none that could stand there.
    """
    document, problems = Document(Path(), {}, text.splitlines()), list[Problem]()
    node = _compose(text, document.path, document.lines)
    value = None if node is None else _build(node, (), document, problems)
    if problems:
        raise DocumentError(document.path, problems)
    return value


def _compose(text: str, path: Path, lines: list[str]) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    try:
        _check_events(yaml, text, path, lines)
        node: Node | None = yaml.compose(text)
    except MarkedYAMLError as error:
        raise DocumentError(path, [_syntax(error, lines)], lines) from None
    except YAMLError as error:
        raise DocumentError(
            path, [Problem(1, 1, f"required YAML, found: {error}")], lines
        ) from None
    return node


def _read(path: Path) -> str:
    if not path.exists():
        raise DocumentError(
            path, [Problem(0, 0, "required a spec file, found nothing there; check the path")]
        )
    if not path.is_file():
        raise DocumentError(
            path, [Problem(0, 0, "required a regular file, found a folder, pipe or device")]
        )
    if (size := path.stat().st_size) > MAX_SIZE_BYTES:
        raise DocumentError(
            path, [Problem(0, 0, f"a spec has at most {MAX_SIZE_BYTES} bytes, found {size}")]
        )
    try:
        return path.read_bytes().decode(
            "utf-8-sig"
        )  # a byte order mark is harmless, so it is dropped
    except UnicodeDecodeError as error:
        raise DocumentError(
            path,
            [
                Problem(
                    0,
                    0,
                    f"required UTF-8 text, found byte {error.object[error.start]:#04x} at {error.start}",
                )
            ],
        ) from None
    except OSError as error:
        raise DocumentError(path, [Problem(0, 0, f"cannot be read: {error.strerror}")]) from None


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
            raise DocumentError(
                path,
                [Problem(event.start_mark.line + 1, event.start_mark.column + 1, problem)],
                lines,
            )


def _syntax(error: MarkedYAMLError, lines: list[str]) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    text = " ".join(part for part in (error.problem, error.context) if part)
    if "\t" in (lines[line - 1][:column] if 0 < line <= len(lines) else ""):
        text = "found a tab; YAML is indented with spaces; replace the tab"
    return Problem(line, column, f"not valid YAML: {text}")


def _build(node: Node, path: Path_, document: Document, problems: list[Problem]) -> Any:
    document.marks[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, ScalarNode):
        return _scalar(node, problems)
    if isinstance(node, SequenceNode):
        return [
            _build(child, (*path, index), document, problems)
            for index, child in enumerate(node.value)
        ]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        mark = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        if not isinstance(key_node, ScalarNode):
            problems.append(Problem(*mark, "a key must be plain text"))
            continue
        key = str(key_node.value)
        if key in mapping:
            first = document.key_marks[(*path, key)][0]
            problems.append(
                Problem(*mark, f"key {key!r} stands twice, first in line {first}; keep one")
            )
        document.key_marks[(*path, key)] = mark
        mapping[key] = _build(value_node, (*path, key), document, problems)
    return mapping


def _scalar(node: ScalarNode, problems: list[Problem]) -> Any:
    """Read a scalar by the YAML 1.2 core schema."""
    text: str = node.value
    if node.style is not None:  # quoted or a block: text
        return text
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if text in {"true", "True", "TRUE", "false", "False", "FALSE"}:
        return text.lower() == "true"
    mark = node.start_mark.line + 1, node.start_mark.column + 1
    if _INT.fullmatch(text) and len(text) > MAX_DIGITS:
        problems.append(
            Problem(
                *mark, f"a number of at most {MAX_DIGITS} digits was required, found {len(text)}"
            )
        )
    elif _INT.fullmatch(text):
        # int(text, 0) would refuse 012, which YAML 1.2 reads as 12
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
    elif _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    elif _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        problems.append(Problem(*mark, f"a finite number was required, found {text}"))
    return text
