"""What the tables and names of a spec's data say, checked before any photo is opened.

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.catalog.answers_table import placeholder
from data_prep.catalog.label_schema import MISSING, OWN_COLUMNS
from data_prep.catalog.labelled_photos import (
    Rows,
    rare_classes,
    read_rows,
    require_classes,
    summary,
)
from data_prep.errors import DataError, nearest
from orchestrator.spec.models import Experiment
from orchestrator.spec.yaml_source import DocumentError, Problem, load
from trainers.settings.model import SingleHead


@dataclass(frozen=True)
class DataReport:
    """What a reader should know of data that a spec can use."""

    lines: list[str]
    warnings: list[str]

    def text(self) -> list[str]:
        """Return all as lines."""
        return [*self.lines, *(f"warning: {warning}" for warning in self.warnings)]


def check_data(experiment: Experiment, path: Path) -> DataReport:
    """Open the tables of a spec, list its photos, and read groups and labels.

    Args:
        experiment: the checked spec.
        path: its file, for the places of problems.

    Raises:
        DocumentError: the data are not as the spec says; each problem is listed with its place.
    """
    problems: list[DataError] = []
    warnings: list[str] = []
    lines: list[str] = []
    data = experiment.spec.data
    try:
        rows = read_rows(data, experiment.base)
        lines = [*summary(data, rows), *_joint_heads(experiment, rows), *rows.notes]
        require_classes(data, rows)
        problems += _faults(experiment, rows, warnings)
    except DataError as error:
        problems.append(error)
    try:
        doubt = placeholder(data, experiment.base)
        warnings += [doubt] if doubt else []
    except DataError as error:
        if str(error) not in map(str, problems):
            problems.append(error)
    if problems:
        document = load(path)
        placed = []
        for problem in problems:
            place = document.where(tuple(problem.path.split(".")))
            placed.append(Problem(*place, str(problem)))
        raise DocumentError(path, placed, document.lines)
    return DataReport(lines, warnings)


def _joint_heads(experiment: Experiment, rows: Rows) -> list[str]:
    """Name the variants that photos which lack a label cannot train."""
    labels = list(experiment.spec.data.labels)
    variants_of: dict[int, list[str]] = {}  # by the number of photos that do not train them
    for name, arm in experiment.arms.items():
        head = arm.train.model.head
        if isinstance(head, SingleHead) and len(head.labels or labels) > 1:
            columns = [rows.codes[labels.index(label)] for label in head.labels or labels]
            n_lacking = sum(MISSING in codes for codes in zip(*columns, strict=True))
            variants_of.setdefault(n_lacking, []).append(f"`{name}`")
    texts = []
    for n_lacking, variants in variants_of.items():
        if n_lacking:
            whose = f"variant {variants[0]}: its head answers"
            them = "it"
            if len(variants) > 1:
                whose = f"variants {', '.join(variants)}: their head answers"
                them = "them"
            photos = "photo that lacks" if n_lacking == 1 else f"{n_lacking} photos that lack"
            do = "does" if n_lacking == 1 else "do"
            texts.append(
                f"{whose} all labels at once, so the {photos} a label {do} not train {them}; use "
                "head shallow or deep"
            )
    return texts


def _faults(experiment: Experiment, rows: Rows, warnings: list[str]) -> Iterator[DataError]:
    """Yield what a later stage would refuse; what it may refuse is added to the warnings."""
    spec = experiment.spec
    by_photo = spec.data.split.strategy == "random"
    scored = rows.complete().readable
    n_units = len(scored)
    if not by_photo:
        n_units = len({rows.groups[index] for index in scored})
        for rare in rare_classes(spec.data, rows):
            where = f"data.labels.{rare.label}"
            if spec.confirm is None:
                warnings.append(f"{where}: {rare.sentence}")
            else:
                yield DataError(where, rare.sentence)
    if spec.confirm is not None and n_units < spec.confirm.folds:
        units = "photos" if by_photo else "groups"
        yield DataError(
            "confirm.folds",
            f"at least one of the {units} per fold was required, found {n_units} {units} for "
            f"{spec.confirm.folds} folds; set confirm.folds: {max(n_units, 2)} or less, or name "
            "a finer data.group",
        )
    yield from _unknown_columns(experiment, rows)


def _unknown_columns(experiment: Experiment, rows: Rows) -> Iterator[DataError]:
    """Yield the columns that exclusions name and nobody has."""
    known = [*rows.source.columns, *experiment.spec.data.labels]
    allowed = {*known, *OWN_COLUMNS, *(f"table_{name}" for name in rows.source.columns)}
    refused = set()
    for arm in experiment.arms.values():
        for rule in arm.data.exclude:
            refused |= set(rule) - allowed
    for column in sorted(refused):
        yield DataError(
            "data.exclude",
            f"a column of the table or a label was required, found {column!r}; there are "
            f"{', '.join(known)}{nearest(column, known)}",
        )
