"""The names of timm's models, read without importing timm (which takes four seconds)."""

from __future__ import annotations

import re
from functools import cache
from importlib import util
from pathlib import Path

_MODEL = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)


@cache
def known_backbones() -> frozenset[str]:
    """Return the names of all models that the installed timm registers; empty where timm is not installed."""
    spec = util.find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    files = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    return frozenset(
        name for file in files for name in _MODEL.findall(file.read_text(encoding="utf-8"))
    )
