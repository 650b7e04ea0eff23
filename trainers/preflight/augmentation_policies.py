"""albumentations' operations: built from a policy, and tried on a photo before anything is trained.

As a program it reads [{"operations": [...], "size": n}, ...] from standard input and prints a list
of problems (null for none). `policy_problems` runs it in a process of its own, because importing
albumentations imports torch; there it goes without.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

from trainers.library_names import NESTING, Operation
from trainers.preflight.subprocess_runner import run_apart

_SEEDS = 16
"""Tries of a policy: an operation that is drawn in one of two has not come in 1 of 65,536."""
_TIMEOUT_S = 120.0
_FIELD = re.compile(
    r"^(\S+)\n  (.+?)(?: \[type=.*input_value=(.*), input_type=.*\])?$", re.MULTILINE
)


class Job(TypedDict):
    """A policy and the side of the photos that it gets, in pixels."""

    operations: list[Operation]
    size: int


def policy_problems(jobs: Sequence[Job]) -> list[str | None]:
    """Return per policy why it cannot be used on prepared photos, None where it can.

    Where albumentations cannot be imported nothing is wrong yet: the worker has it, or says so.
    """
    return run_apart("trainers.preflight.augmentation_policies", jobs, timeout_s=_TIMEOUT_S)


def build_operation(operation: Operation, **changes: Any) -> Any:
    """Return albumentations' object of an operation; those inside OneOf and the like are built too.

    Args:
        operation: {name: <class>, <its settings>}.
        changes: settings to replace, also of those inside.

    Raises:
        ValueError: there is no such operation, or it does not take these settings.
    """
    import albumentations  # noqa: PLC0415 - takes seconds

    name = str(operation.get("name"))
    kind = getattr(albumentations, name, None)
    if kind is None:
        raise ValueError(f"albumentations has no operation {name!r}")
    settings: dict[str, Any] = {}
    for key, value in operation.items():
        if key == "transforms":
            settings[key] = [build_operation(child, **changes) for child in value]
        elif key != "name":
            settings[key] = tuple(value) if isinstance(value, list) else value
    if name not in NESTING:
        settings |= changes
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not take these settings: {_plain(str(error))}") from None


def _plain(text: str) -> str:
    """Return what pydantic says of settings as one line."""
    parts = []
    for field, message, value in _FIELD.findall(text):
        required = message.replace("Input should be", "required").replace("Value error, ", "")
        parts.append(f"{field.partition('.')[0]}: {required}, found {value or 'nothing'}")
    return "; ".join(dict.fromkeys(parts)) or text.partition("\n")[0]


def try_policy(operations: Sequence[Operation], size: int) -> str | None:
    """Return why a policy cannot be used on photos of a size, None if it can.

    A photo must stay 8-bit RGB and keep its size: anything else would train on ruined photos.
    """
    try:
        as_given = [build_operation(operation) for operation in operations]
        always = [build_operation(operation, p=1) for operation in operations]
    except ValueError as error:
        return str(error)
    problem = _applied(always, size) or _applied(as_given, size)
    if problem is None:
        return None
    for operation in _leaves(operations):
        alone = _applied([build_operation(operation, p=1)], size)
        if alone is not None:
            return f"{operation['name']} {alone}"
    return f"the policy {problem}"


def _leaves(operations: Sequence[Operation]) -> Iterator[Operation]:
    for operation in operations:
        if operation["name"] in NESTING:
            yield from _leaves(operation["transforms"])
        else:
            yield operation


def _applied(steps: list[Any], size: int) -> str | None:
    import albumentations  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    compose = albumentations.Compose(steps)
    photo = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    for seed in range(_SEEDS):
        compose.set_random_seed(seed)
        try:
            result = compose(image=photo.copy())["image"]
        except Exception as error:  # noqa: BLE001 - whatever a library raises
            first_line = str(error).strip().partition("\n")[0]
            return f"fails on a photo of {size}x{size}: {first_line or type(error).__name__}"
        fault = fault_of(result, photo)
        if fault is not None:
            return fault
    return None


def fault_of(result: Any, photo: Any) -> str | None:
    """Return what is wrong with an augmented photo, None if it is like the one that went in."""
    if result.dtype != photo.dtype:
        return (
            f"returns {result.dtype} values, uint8 from 0 to 255 was required; "
            "the network scales photos itself: remove the operation"
        )
    if result.shape[2:] != photo.shape[2:]:
        n_channels = result.shape[2] if result.ndim == 3 else 1
        return f"returns {n_channels} channel(s), 3 were required"
    if result.shape != photo.shape:
        sides = f"{result.shape[1]}x{result.shape[0]}"
        wanted = f"{photo.shape[1]}x{photo.shape[0]}"
        return (
            f"returns {sides} pixels, the prepared size {wanted} was required; "
            f"give it that size, or follow it by a Resize to {wanted}"
        )
    return None


def main() -> None:
    """Try the policies on standard input."""
    # a policy needs no torch, and importing it takes seconds
    sys.modules["torch"] = None  # type: ignore[assignment]
    warnings.simplefilter("ignore")
    jobs: list[Job] = json.load(sys.stdin)
    problems = [try_policy(job["operations"], job["size"]) for job in jobs]
    sys.stdout.write(json.dumps(problems))


if __name__ == "__main__":
    main()
