"""Parts of a training that are code of the user: how a spec names them, and which files they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    TypeAdapter,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from data_prep.section_base import Section, since

_USE = r"^[A-Za-z_]\w*\.py:[A-Za-z_]\w*$"
CODE_FOLDER = "code"
"""The folder of a run or a bundle that has copies of the user's files."""
_SECTIONS = ("train", "variants", "search")  # of a spec, that may name code
KeyPath = tuple[str | int, ...]


class OwnPart(Section):
    """Code of the user: a function of a file beside the spec. Other keys are its settings.

    It runs only where the command has `--allow-code`.
    """

    model_config = ConfigDict(extra="allow")

    use: Annotated[str, StringConstraints(pattern=_USE)]
    """`file.py:function`; the file lies beside the spec."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = since(None)
    """Of the file; reading the spec fills it in, so that keys depend on the code."""

    @property
    def name(self) -> str:
        """The part as messages call it."""
        return self.use

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.use.partition(":")[0]

    @property
    def function(self) -> str:
        """Name of the function."""
        return self.use.partition(":")[2]

    @property
    def settings(self) -> dict[str, Any]:
        """What the function gets by name."""
        return dict(self.model_extra or {})


class OwnOr:
    """Lets a component be code of the user instead of a named one.

    The form is chosen first, so that a message is about one form and not about both.
    """

    def __init__(self, named: Any, own: type[OwnPart] = OwnPart) -> None:
        """Hold what reads the component.

        Args:
            named: the type of the named ones.
            own: the section of code of the user.
        """
        self._named: TypeAdapter[Any] = TypeAdapter(named)
        self._own = own

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        inner = handler(schema["schema"])
        options: list[JsonSchemaValue] = []
        for option in inner.get("anyOf", []):
            options += option.get("anyOf", [option])
        return {**inner, "anyOf": options} if options else inner

    def _read(self, value: Any) -> Any:
        if isinstance(value, dict) and "use" in value:
            return self._own.model_validate(value)
        if isinstance(value, dict | str):
            return self._named.validate_python(value)
        return value


@dataclass(frozen=True)
class Pinned:
    """A spec whose code is known by hash, and the files."""

    data: Any
    files: dict[str, Path]  # name -> file
    places: list[KeyPath]  # where the spec names code
    missing: dict[KeyPath, str]  # where -> what was required and what was found
    lost: list[str]  # names of files of which this version is not there


def pin(data: Any, folders: Sequence[Path]) -> Pinned:
    """Add the sha256 of its file to every own part of a spec; one that has it keeps it.

    Args:
        data: the spec as plain data; it is not changed.
        folders: where files are looked for, the first first.
    """
    pinned = Pinned(data, {}, [], {}, [])
    if not isinstance(data, dict):
        return pinned
    sections = {}
    for name, value in data.items():
        sections[name] = _pinned(value, (name,), folders, pinned) if name in _SECTIONS else value
    return replace(pinned, data=sections)


def _pinned(value: Any, place: KeyPath, folders: Sequence[Path], pinned: Pinned) -> Any:
    if isinstance(value, list):
        return [_pinned(part, (*place, i), folders, pinned) for i, part in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("use"), str) and re.match(_USE, value["use"]):
        return _with_hash(value, place, folders, pinned)
    return {key: _pinned(part, (*place, key), folders, pinned) for key, part in value.items()}


def _with_hash(
    part: dict[str, Any], place: KeyPath, folders: Sequence[Path], pinned: Pinned
) -> dict[str, Any]:
    pinned.places.append(place)
    name = part["use"].partition(":")[0]
    for folder in folders:
        file = folder / name
        if not file.is_file():
            continue
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        if part.get("sha256") in (None, sha256):
            pinned.files[name] = file
            return {**part, "sha256": sha256}
    if part.get("sha256") is None:
        where = " or ".join(str(folder) for folder in dict.fromkeys(folders))
        pinned.missing[place] = f"the file {name} was required in {where}, found none"
    else:
        pinned.lost.append(name)
    return part
