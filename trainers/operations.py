"""albumentations' operations and their settings, read without importing it (which takes a second)."""

from __future__ import annotations

import ast
import difflib
import re
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

_CLASS = re.compile(r"^class (\w+)\(([^)]*)\):", re.MULTILINE)
_COMMON = frozenset({"p"})  # what every operation takes


@cache
def _classes() -> dict[str, tuple[tuple[str, ...], Path]]:
    """Return name -> (names of its bases, file) of albumentations' classes; empty where it is not installed."""
    spec = util.find_spec("albumentations")
    if spec is None or spec.origin is None:
        return {}
    found = {}
    for file in sorted((Path(spec.origin).parent / "augmentations").rglob("*.py")):
        for name, bases in _CLASS.findall(file.read_text(encoding="utf-8")):
            found[name] = (tuple(base.strip() for base in bases.split(",")), file)
    return found


@cache
def settings_of(operation: str) -> frozenset[str] | None:
    """Return the names of an operation's settings, or None where albumentations has no such operation."""
    if operation not in _classes() or operation.startswith(("Base", "_")):
        return None
    bases, file = _classes()[operation]
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == operation:
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    names = {argument.arg for argument in (*part.args.args, *part.args.kwonlyargs)}
                    return frozenset(names - {"self"}) | _COMMON
    inherited = [found for base in bases if (found := settings_of(base)) is not None]
    return inherited[0] if inherited else _COMMON


def check_operation(op: dict[str, Any]) -> None:
    """Raise unless an operation of a policy is {name: <albumentations class>, <its settings>}.

    Raises:
        ValueError: there is no such operation, or it has no such setting; the text names the nearest.
    """
    name = op.get("name")
    if not isinstance(name, str):
        raise ValueError(  # noqa: TRY004 - pydantic turns ValueError into a problem of the spec
            f"an operation is {{name: HorizontalFlip, p: 0.5}}, found {op}"
        )
    if not _classes():
        return  # a client without albumentations: the worker will say
    known = settings_of(name)
    if known is None:
        public = [other for other in _classes() if not other.startswith(("Base", "_"))]
        raise ValueError(f"albumentations has no operation {name!r}{_near(name, public)}")
    for setting in op.keys() - {"name"}:
        if setting not in known:
            takes = ", ".join(sorted(known))
            raise ValueError(
                f"{name} does not take {setting!r}; it takes {takes}{_near(setting, sorted(known))}"
            )


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; nearest: {', '.join(close)}" if close else ""
