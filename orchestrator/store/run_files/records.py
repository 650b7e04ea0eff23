"""What all records of files share: their reader is tolerant.

A field that is missing or has another type takes its default, and fields that a newer version added
are left out. So a file of another version costs a number, not the page.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)


class FileRecord(BaseModel):
    """A JSON object or a row of a table; each field has a default."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _valid_or_default(
        cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            valid_items = _without_faults(value, error)
        try:
            return validate(valid_items)
        except ValidationError:
            field = cls.model_fields[str(info.field_name)]
            return field.get_default(call_default_factory=True)


def _without_faults(value: Any, error: ValidationError) -> Any:
    """Return a list or an object without the items that are not valid."""
    faults = {fault["loc"][0] for fault in error.errors() if fault["loc"]}
    if isinstance(value, list):
        return [item for index, item in enumerate(value) if index not in faults]
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if name not in faults}
    return None


R = TypeVar("R", bound=FileRecord)


def as_record(cls: type[R], value: Any) -> R:
    """Return the record of what a file holds, of any type."""
    return cls.model_validate(value if isinstance(value, dict) else {})


def as_records(cls: type[R], value: Any) -> tuple[R, ...]:
    """Return the records of the objects in a list."""
    rows = value if isinstance(value, list) else []
    return tuple(cls.model_validate(row) for row in rows if isinstance(row, dict))


def read_json(path: Path) -> Any:
    """Read one JSON file; NaN and infinities, which no file of a run may hold, become None."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)


def number(value: Any) -> float | None:
    """Return a finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
