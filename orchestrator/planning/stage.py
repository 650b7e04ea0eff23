"""What a stage is: how it is found in the store, and how it is run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.planning.run_environment import Scope

SUCCEEDED = "SUCCEEDED"
CACHED = "CACHED"

ArtifactName = tuple[str, str]
"""Kind and key."""


class Output(Protocol):
    """What a stage hands on. Each stage has a frozen dataclass of its own with more in it."""

    @property
    def outcome(self) -> str:
        """SUCCEEDED or CACHED."""

    @property
    def note(self) -> str:
        """A few words for the person who watches."""


@dataclass(frozen=True)
class Found:
    """What is known of a stage before it runs, from keys and manifests alone."""

    why: str  # it is cached, or would run
    is_cached: bool = False
    key: str | None = None
    artifacts: frozenset[ArtifactName] = frozenset()  # that a run of this spec refers to
    output: Output | None = None  # rebuilt from the store, where a later `find` reads it
    n_to_prepare: int = 0  # photos


@dataclass(frozen=True)
class Stage:
    """One step of a run. Its module is imported when it is run, because it may import NumPy."""

    name: str
    version: int
    module: str
    find: Callable[..., Found]

    @property
    def run(self) -> Callable[..., Output]:
        """The function `run` of its module. It takes an Env and the outputs that it reads."""
        function: Callable[..., Output] = importlib.import_module(self.module).run
        return function

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the stages whose outputs `run` takes."""
        return _reads(self.run)

    @property
    def find_reads(self) -> tuple[str, ...]:
        """The names of the stages whose outputs `find` takes."""
        return _reads(self.find)


def _reads(function: Callable[..., Any]) -> tuple[str, ...]:
    _, *parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.default is inspect.Parameter.empty)


def find_stages(scope: Scope, stages: tuple[Stage, ...]) -> dict[str, Found]:
    """Find every stage of a run in the store, in order; one that lacks an input waits for it."""
    results: dict[str, Found] = {}
    outputs: dict[str, Output] = {}
    for stage in stages:
        missing = [name for name in stage.find_reads if name not in outputs]
        if missing:
            results[stage.name] = Found(f"waits for the {missing[0]}")
            continue
        result = stage.find(scope, **{name: outputs[name] for name in stage.find_reads})
        results[stage.name] = result
        if result.output is not None:
            outputs[stage.name] = result.output
    return results


def find_nothing(scope: Scope, catalog: Output) -> Found:
    """Find a stage that keeps no artifact: every run makes it."""
    del scope, catalog
    return Found("quick, made anew for each run")
