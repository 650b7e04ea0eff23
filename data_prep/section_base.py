"""The base of every configuration section: closed, frozen, strictly typed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_HOW = "how"


class Section(BaseModel):
    """A part of a spec. Unknown keys, loose types, NaN and infinities are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        populate_by_name=False,
        serialize_by_alias=True,
    )


def how(default: Any = ..., **settings: Any) -> Any:
    """Declare a field that says only how to run, and so stays out of every key."""
    return Field(default, json_schema_extra={_HOW: True}, **settings)


def since(default: Any, **settings: Any) -> Any:
    """Declare a field that came later: at its default it is in no dump, so that keys stay."""
    return Field(default, exclude_if=lambda value: bool(value == default), **settings)


def identity(section: BaseModel) -> dict[str, Any]:
    """Return the fields of a section that decide its result, defaults included, as JSON values."""
    dumped: dict[str, Any] = section.model_dump(mode="json", by_alias=True)
    for name, field in type(section).model_fields.items():
        alias = field.alias or name
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get(_HOW):
            dumped.pop(alias, None)
            continue
        value = getattr(section, name)
        if isinstance(value, BaseModel) and alias in dumped:
            dumped[alias] = identity(value)
    return dumped


def _bare_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class _BareName:
    """Lets a bare string s stand for {name: s}, and says so in the JSON Schema."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_bare_name, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        inner = handler(schema["schema"])
        short: JsonSchemaValue = {"type": "string"}
        if names := sorted(inner.get("discriminator", {}).get("mapping", {})):
            short["enum"] = names
        return {"anyOf": [short, inner]}


BARE_NAME = _BareName()
"""The short form that every named component has."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy, torch and Python's random all accept as a seed."""


def check_rule(where: str, wanted: Any) -> None:
    """Check the form of a rule about a column.

    It is [low, high] (inclusive), a list of values, a value, or {not: value(s)}.

    Raises:
        ValueError: it is something else; the text begins with `where`.
    """
    form = f"{where}: must be [low, high], a list of values, a value, or {{not: value}}"
    if isinstance(wanted, dict):
        if set(wanted) != {"not"} or isinstance(wanted["not"], dict):
            raise ValueError(f"{form}, found {wanted}")
    elif isinstance(wanted, list):
        numbers = [
            isinstance(value, int | float) and not isinstance(value, bool) for value in wanted
        ]
        if not wanted or (
            any(numbers) and (not all(numbers) or len(wanted) != 2 or wanted[0] > wanted[1])
        ):
            raise ValueError(f"{form}, found {wanted}")
