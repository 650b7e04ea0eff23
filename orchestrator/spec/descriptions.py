"""What each field of a spec means: the docstrings below the fields, read when they are asked for.

Pydantic could read them at import, but every command would wait for that.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from typing import Any

from pydantic import BaseModel


def describe_fields(model: type[BaseModel]) -> dict[str, str]:
    """Return key in the spec -> what it means; a field of one allowed value describes itself."""
    described = {}
    for name, field in model.model_fields.items():
        text = ""
        for base in model.__mro__:
            if base.__module__ in sys.modules and issubclass(base, BaseModel):
                text = text or _docstrings(base.__module__).get(f"{base.__name__}.{name}", "")
        described[field.alias or name] = text
    return described


@cache
def _docstrings(module: str) -> dict[str, str]:
    """Return "Class.field" -> the docstring below it, of a module."""
    texts = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if not isinstance(node, ast.ClassDef):
            continue
        field = ""
        for item in node.body:
            if field and isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant):
                texts[field] = inspect.cleandoc(str(item.value.value)).replace("\n", " ")
            field = ""
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                field = f"{node.name}.{item.target.id}"
    return texts


def add_descriptions(schema: dict[str, Any], models: dict[str, type[BaseModel]]) -> None:
    """Write the meaning of every field into a JSON Schema.

    Args:
        schema: of the root model, with its `$defs`; it is changed.
        models: title in the schema -> class.
    """
    for title, part in {**schema.get("$defs", {}), schema["title"]: schema}.items():
        texts = describe_fields(models[title]) if title in models else {}
        for key, settings in part.get("properties", {}).items():
            text = texts.get(key) or settings.get("description", "")
            if not text and "const" in settings:
                text = f"Always `{settings['const']}`."
            if text:
                settings["description"] = text


def sections(root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return name -> class of a model and of all models that its fields hold."""
    models: dict[str, type[BaseModel]] = {}
    waiting: list[Any] = [root]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, type) and issubclass(part, BaseModel):
            if part.__name__ not in models:
                models[part.__name__] = part
                waiting += [field.annotation for field in part.model_fields.values()]
        else:
            waiting += _parts(part)
    return models


def _parts(annotation: Any) -> list[Any]:
    """Return what a type is made of: the members of a union, the items of a list."""
    alias = getattr(annotation, "__value__", None)
    return [alias] if alias is not None else list(getattr(annotation, "__args__", ()))
