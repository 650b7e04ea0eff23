"""Names that other packages know: timm's models, albumentations' operations and their settings.

They are read from the packages' source and not imported. Measured: 0.02 s to read the models and
3.0 s to import timm, 0.03 s to read the operations and 1.8 s to import albumentations, while the
whole `check` of a spec takes 0.27 s.
"""

from __future__ import annotations

import ast
import difflib
import re
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

_MODEL = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
_CLASS = re.compile(r"^class (\w+)\(([^)]*)\):", re.MULTILINE)
Operation = dict[str, Any]
"""An operation of a policy: {name: <albumentations class>, <its settings>}."""
_COMMON = frozenset({"p"})  # what every operation takes
_NOT_PUBLIC = ("Base", "_")
NESTING = frozenset({"OneOf", "SomeOf", "RandomOrder", "Sequential", "Compose"})
"""Operations that hold others in `transforms`."""


class _Source(NamedTuple):
    """Where a class stands, and the names of its bases."""

    bases: list[str]
    file: Path


@cache
def known_backbones() -> frozenset[str]:
    """Return the names of all models of the installed timm; empty where it is not installed."""
    spec = util.find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    names: set[str] = set()
    for file in (Path(spec.origin).parent / "models").glob("*.py"):
        names.update(_MODEL.findall(file.read_text(encoding="utf-8")))
    return frozenset(names)


@cache
def _classes() -> dict[str, _Source]:
    """Return albumentations' classes by name; empty where it is not installed."""
    spec = util.find_spec("albumentations")
    if spec is None or spec.origin is None:
        return {}
    classes = {}
    root = Path(spec.origin).parent
    files = [*sorted((root / "augmentations").rglob("*.py")), root / "core/composition.py"]
    for file in files:
        for name, bases in _CLASS.findall(file.read_text(encoding="utf-8")):
            if file.name != "composition.py" or name in NESTING:
                classes[name] = _Source([base.strip() for base in bases.split(",")], file)
    return classes


@cache
def settings_of(operation: str) -> frozenset[str] | None:
    """Return the names of an operation's settings, or None if albumentations has no such one."""
    source = _classes().get(operation)
    if source is None or operation.startswith(_NOT_PUBLIC):
        return None
    for node in ast.parse(source.file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == operation:
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    arguments = [*part.args.args, *part.args.kwonlyargs]
                    return frozenset(arg.arg for arg in arguments) - {"self"} | _COMMON
    for base in source.bases:
        inherited = settings_of(base)
        if inherited is not None:
            return inherited
    return _COMMON


def check_operation(operation: Operation) -> None:
    """Raise unless an operation of a policy is {name: <albumentations class>, <its settings>}.

    Raises:
        ValueError: there is no such operation, or it has no such setting; the text names the
            nearest ones.
    """
    name = operation.get("name")
    if not isinstance(name, str):
        raise ValueError(  # noqa: TRY004 - pydantic turns ValueError into a problem of the spec
            f"an operation is {{name: HorizontalFlip, p: 0.5}}, found {operation}"
        )
    if not _classes():
        return  # a client without albumentations: the worker checks it
    known = settings_of(name)
    if known is None:
        public = [other for other in _classes() if not other.startswith(_NOT_PUBLIC)]
        raise ValueError(f"albumentations has no operation {name!r}{_nearest(name, public)}")
    for setting in sorted(operation.keys() - {"name"} - known):
        nearest = _nearest(setting, sorted(known))
        raise ValueError(
            f"{name} does not take {setting!r}; it takes {', '.join(sorted(known))}{nearest}"
        )

    if name in NESTING:
        inside = operation.get("transforms")
        if not isinstance(inside, list) or not all(isinstance(child, dict) for child in inside):
            raise ValueError(f"{name} needs transforms: a list of operations, found {inside!r}")
        for child in inside:
            check_operation(child)


def _nearest(name: str, known: list[str]) -> str:
    names = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; nearest: {', '.join(names)}" if names else ""
