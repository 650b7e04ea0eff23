"""A spec between reading and checking, and the problems that checks add to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.spec.models import Arm, Spec
from orchestrator.spec.search_space import Choice, Space
from orchestrator.spec.yaml_source import Document, KeyPath, Problem


class PlacedSpace(NamedTuple):
    """A search space, and where the spec declares it."""

    where: tuple[str, ...]
    space: Space


@dataclass(frozen=True)
class Draft:
    """A spec whose sections are valid, its valid variants, and the problems found so far."""

    spec: Spec
    arms: dict[str, Arm]
    document: Document
    problems: list[Problem]

    def refuse(self, where: KeyPath, text: str, *, key: bool = False) -> None:
        """Add a problem at a path of the document."""
        self.problems.append(Problem(*self.document.where(where, key=key), text))

    def space_of(self, variant: str) -> Space:
        """Return the search space of a variant; empty without a search."""
        return self.spec.search.space_of(variant) if self.spec.search else {}

    def spaces(self) -> list[PlacedSpace]:
        """Return the shared space and those of single variants."""
        search = self.spec.search
        if search is None:
            return []
        spaces = [PlacedSpace(("search", "space"), dict(search.space))]
        for name, entries in search.variant_spaces.items():
            space = {path: entry for path, entry in entries.items() if entry is not None}
            spaces.append(PlacedSpace(("search", "variant_spaces", name), space))
        return spaces


def values_of(draft: Draft, name: str, path: str, value: Any) -> list[tuple[Any, KeyPath]]:
    """Return what a variant may set a path to, and where the spec says so."""
    changes = [key for key in draft.spec.variants[name] if path.startswith(key)]
    place: KeyPath = tuple(path.split("."))
    if changes:
        place = ("variants", name, changes[0])
    values: list[tuple[Any, KeyPath]] = [(value, place)]
    entry = draft.space_of(name).get(path)
    if isinstance(entry, Choice):
        values += [(choice, ("search", "space", path)) for choice in entry.choice]
    return values
