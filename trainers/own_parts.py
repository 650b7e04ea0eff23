"""Code of a user: functions of files that this process was allowed to run, and of no others."""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from trainers.settings.own_parts import OwnPart

_allowed: dict[str, Path] = {}  # sha256 -> file
_NOT_THE_USERS = ("OutOfMemoryError", "MemoryError")  # the loop goes on with smaller batches


class CodeNotAllowed(RuntimeError):  # noqa: N818 - says what is the case
    """Code of a user is named, and this process was not allowed to run it."""


class OwnPartFailed(RuntimeError):  # noqa: N818 - says what happened
    """Code of a user raised an error; the text begins with its file and line."""


def allow(*files: Path) -> None:
    """Allow this process to run files, as they are now."""
    for path in files:
        _allowed[hashlib.sha256(path.read_bytes()).hexdigest()] = path


def call(part: OwnPart, *arguments: Any, **settings: Any) -> Any:
    """Call the function of a part with its settings and some more.

    Raises:
        CodeNotAllowed: the file was not allowed here.
        OwnPartFailed: it has no such function, or the function does not take the settings or raises.
    """
    function = function_of(part, *arguments, **settings)
    with naming_lines():
        return function(*arguments, **part.settings | settings)


def function_of(part: OwnPart, *arguments: Any, **settings: Any) -> Callable[..., Any]:
    """Return the function of a part, which takes these arguments and the part's settings.

    Raises:
        CodeNotAllowed: the file was not allowed here.
        OwnPartFailed: it cannot be imported, or has no such function that takes them.
    """
    path = _allowed.get(part.sha256 or "")
    if path is None:
        raise CodeNotAllowed(
            f"{part.use} is code that runs with your rights: read it, then give --allow-code"
        )
    with naming_lines():
        module = _module(part.sha256 or "", path)
    function = getattr(module, part.function, None)
    if not callable(function):
        raise OwnPartFailed(f"{part.file}: a function {part.function} was required, found none")
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments, **part.settings | settings)
    except TypeError as error:
        raise OwnPartFailed(f"{part.use}{signature} cannot be called: {error}") from None
    return function


@cache
def _module(sha256: str, path: Path) -> ModuleType:
    """Run a file as a module, if it is the one that was allowed."""
    source = path.read_bytes()
    if hashlib.sha256(source).hexdigest() != sha256:
        raise CodeNotAllowed(f"{path}: it was changed after it was allowed; submit the spec again")
    module = ModuleType(f"own_parts_{sha256[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 - the user allowed it
    return module


@contextmanager
def naming_lines() -> Iterator[None]:
    """Let an error of a user's code begin with the line of that code.

    Raises:
        OwnPartFailed: instead of an error that passed through an allowed file.
    """
    try:
        yield
    except (OwnPartFailed, CodeNotAllowed):
        raise
    except Exception as error:
        place = place_of(error)
        if place is None or type(error).__name__ in _NOT_THE_USERS:
            raise
        raise OwnPartFailed(f"{place}: {type(error).__name__}: {error}") from error


def place_of(error: BaseException) -> str | None:
    """Return the innermost line of a user's code that an error passed through, None for no line."""
    files = {str(path) for path in _allowed.values()}
    if isinstance(error, SyntaxError) and error.filename in files:
        return f"{Path(error.filename).name}, line {error.lineno}"
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in files:
            place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return place
