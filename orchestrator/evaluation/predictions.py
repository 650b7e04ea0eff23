"""Predictions on samples that were held out, as arrays: read once, joined by sample id."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.base.errors import UserError
from orchestrator.store import tables

Ints = NDArray[np.int64]
Probs = NDArray[np.float32]
Array = TypeVar("Array", bound=NDArray[Any])
_COLUMNS = ["setting", "seed", "fold", "sample_id", "target", "pred", "probs"]
_N_NAMED = 20


@dataclass(frozen=True)
class Predictions:
    """Answers of one setting, or of one vote, on samples that were held out.

    `preds` has one row per seed. `groups` None means that samples are independent. `folds` says
    which fold of a seed held a sample out; it is None where nothing is known about folds.
    """

    sample_ids: list[str]
    targets: Ints  # (N,)
    preds: Ints  # (S, N)
    n_classes: int
    groups: list[str] | None = None
    probs: Probs | None = None  # (S, N, C)
    folds: Ints | None = None  # (S, N)
    seeds: tuple[int, ...] | None = None

    @cached_property
    def mean_probs(self) -> Probs:
        """Return the mean probability over seeds, (N, C); of answers alone, 1 for each answer."""
        if self.probs is None:
            one_hot = np.eye(self.n_classes, dtype=np.float32)[self.preds]
            return np.asarray(one_hot.mean(0), np.float32)
        return np.asarray(self.probs.mean(0, dtype=np.float64), np.float32)

    @cached_property
    def votes(self) -> Ints:
        """Return the class that the setting votes for as a member of an ensemble: (N,)."""
        return self.mean_probs.argmax(1).astype(np.int64)

    def take(self, index: Ints) -> Predictions:
        """Return the samples at some places."""
        return replace(
            self,
            sample_ids=[self.sample_ids[i] for i in index],
            targets=self.targets[index],
            preds=self.preds[:, index],
            groups=self.groups and [self.groups[i] for i in index],
            probs=_cut(self.probs, (slice(None), index)),
            folds=_cut(self.folds, (slice(None), index)),
        )

    def of_seeds(self, rows: Ints) -> Predictions:
        """Return the answers of some seeds, by their rows."""
        return replace(
            self,
            preds=self.preds[rows],
            probs=_cut(self.probs, rows),
            folds=_cut(self.folds, rows),
            seeds=self.seeds and tuple(self.seeds[i] for i in rows),
        )

    def among(self, samples: Collection[str]) -> Predictions:
        """Return the samples that are in a collection, in their order here."""
        kept = [i for i, sample in enumerate(self.sample_ids) if sample in samples]
        return self.take(np.array(kept, np.int64))

    def answered_by(self, preds: Ints) -> Predictions:
        """Return the same samples with other answers: (N,), or (S, N) with one row per seed."""
        rows = np.atleast_2d(np.asarray(preds, np.int64))
        return replace(self, preds=rows, probs=None, folds=None, seeds=None)


def _cut(array: Array | None, index: Any) -> Array | None:
    """Return some entries of an array that may be missing."""
    if array is None:
        return None
    return array[index]


def positions(
    wanted: Sequence[str], names: Sequence[str], owner: str, *, exact: bool = False
) -> Ints:
    """Return the place of every wanted id among names. This is the one rule of joining by id.

    Args:
        wanted: ids, each once.
        names: of the owner's rows.
        owner: whose rows, for the message.
        exact: refuse names that are not wanted.

    Raises:
        UserError: an id is missing or stands twice; the message names the first ones.
    """
    if len(wanted) == len(names) and list(wanted) == list(names) and len(set(names)) == len(names):
        return np.arange(len(names))
    place = {name: i for i, name in enumerate(names)}
    problems = []
    if len(place) < len(names):
        twice = [name for name, n in Counter(names).items() if n > 1]
        problems.append(f"{len(twice)} twice: {_named(twice)}")
    if missing := set(wanted) - set(place):
        problems.append(f"{len(missing)} missing: {_named(missing)}")
    if exact and (extra := set(place) - set(wanted)):
        problems.append(f"{len(extra)} not asked for: {_named(extra)}")
    if problems:
        raise UserError(
            f"{owner}: one prediction per photo was required, found {'; '.join(problems)}"
        )
    return np.array([place[name] for name in wanted], np.int64)


def _named(names: Collection[str]) -> str:
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return ", ".join(sorted(names)[:_N_NAMED]) + more


def align(arms: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Return all arms on the samples that every one of them answered, in the order of the ids.

    Raises:
        UserError: two arms disagree on the class of a sample.
    """
    if not arms:
        return {}
    common = sorted(set.intersection(*(set(arm.sample_ids) for arm in arms.values())))
    aligned = {
        name: arm.take(positions(common, arm.sample_ids, name)) for name, arm in arms.items()
    }
    first = next(iter(aligned.values()))
    for name, arm in aligned.items():
        if not np.array_equal(arm.targets, first.targets):
            raise UserError(
                f"{name}: the same class of a photo was required in all arms, found another one; "
                "they were trained on different labels"
            )
    return aligned


def groups_of(catalog: pa.Table) -> dict[str, str]:
    """Return sample id -> group of a catalog's labelled rows."""
    rows = catalog.filter(pc.is_valid(catalog["label"]))
    return dict(zip(rows["sample_id"].to_pylist(), rows["group"].to_pylist(), strict=True))


def read_predictions(
    path: Path, split: str, n_classes: int, groups: Mapping[str, str] | None = None
) -> dict[str, Predictions]:
    """Read predictions.parquet by setting; settings that answer over other classes are left out.

    Args:
        path: of the file.
        split: oof, or val where nothing was confirmed.
        n_classes: length of a probability vector.
        groups: sample id -> group.
    """
    rows = tables.read(path, _COLUMNS, filters=[("split", "=", split)])
    return by_setting(rows, n_classes, groups)


def by_setting(
    rows: pa.Table, n_classes: int, groups: Mapping[str, str] | None = None
) -> dict[str, Predictions]:
    """Arrange rows of predictions.parquet by setting, seed and sample.

    A sample is kept where every seed of the setting predicted it.
    """
    rows = rows.filter(pc.equal(pc.list_value_length(rows["probs"]), n_classes)).combine_chunks()
    if not len(rows):
        return {}
    settings, setting = np.unique(
        np.array(rows["setting"].to_pylist(), object), return_inverse=True
    )
    names, sample = _numbered(rows["sample_id"])
    seeds = rows["seed"].to_numpy()
    folds = np.full(len(rows), -1)
    if "fold" in rows.column_names:
        folds = pc.fill_null(rows["fold"], -1).to_numpy()
    targets = rows["target"].to_numpy()
    preds = rows["pred"].to_numpy()
    flat = rows["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    probs = flat.reshape(-1, n_classes)
    arms = {}
    for number, name in enumerate(settings):
        index = np.flatnonzero(setting == number)
        of_seed, row = np.unique(seeds[index], return_inverse=True)
        codes, column = np.unique(sample[index], return_inverse=True)
        shape = (len(of_seed), len(codes))
        arranged_preds = np.full(shape, -1, np.int64)
        arranged_folds = np.full(shape, -1, np.int64)
        arranged_preds[row, column] = preds[index]
        arranged_folds[row, column] = folds[index]
        arranged_probs = np.zeros((*shape, n_classes), np.float32)
        arranged_probs[row, column] = probs[index]
        truth = np.zeros(len(codes), np.int64)
        truth[column] = targets[index]
        kept = np.flatnonzero((arranged_preds >= 0).all(0))
        if not len(kept):
            continue
        arm = Predictions(
            [names[code] for code in codes],
            truth,
            arranged_preds,
            n_classes,
            groups=None if groups is None else [groups[names[code]] for code in codes],
            probs=arranged_probs,
            folds=arranged_folds if (arranged_folds[:, kept] >= 0).all() else None,
            seeds=tuple(int(seed) for seed in of_seed),
        )
        arms[str(name)] = arm.take(kept)
    return arms


@dataclass(frozen=True)
class GroupMean:
    """Labels whose probabilities are averaged over the photos of a group.

    Probabilities and not their logarithms: a joint class that does not exist has probability 0,
    and one photo's 0 would forbid a class to the whole group. The mean is also what is less
    sensitive to errors of single answers (Kittler et al. 1998, section 4).
    """

    sizes: tuple[int, ...]  # classes of every label, in their order
    places: tuple[int, ...]  # of the labels that are averaged, among them

    @property
    def n_classes(self) -> int:
        """Number of joint classes."""
        return math.prod(self.sizes)

    def over(self, groups: Sequence[str], probs: NDArray[Any]) -> Probs:
        """Return the probabilities of photos, (N, C), where groups agree on these labels.

        A photo keeps what it says of the other labels given these ones.

        Args:
            groups: (N,) of the photos.
            probs: (N, C) over the joint class.
        """
        cube = np.asarray(probs, np.float64).reshape(-1, *self.sizes)
        others = tuple(1 + axis for axis in range(len(self.sizes)) if axis not in self.places)
        averaged = tuple(1 + axis for axis in self.places)
        of_photo = cube.sum(axis=others, keepdims=True)
        _, place = np.unique(np.array(groups, object), return_inverse=True)
        n_photos = np.bincount(place)
        totals = np.zeros((len(n_photos), *of_photo.shape[1:]))
        np.add.at(totals, place, of_photo)
        mean = totals[place] / n_photos[place].reshape(-1, *[1] * len(self.sizes))
        rest = np.broadcast_to(cube.sum(axis=averaged, keepdims=True), cube.shape).copy()
        np.divide(cube, of_photo, out=rest, where=of_photo > 0)
        return np.asarray((mean * rest).reshape(len(cube), -1), np.float32)


def group_mean_of(labels: Sequence[str], sizes: Mapping[str, int]) -> GroupMean | None:
    """Return the mean over groups that a spec asks for, None where it asks for none.

    Args:
        labels: that are averaged.
        sizes: every label and its number of classes, in order.
    """
    if not labels:
        return None
    names = list(sizes)
    return GroupMean(tuple(sizes.values()), tuple(sorted(names.index(name) for name in labels)))


def with_group_means(rows: pa.Table, mean: GroupMean, groups: Mapping[str, str]) -> pa.Table:
    """Return rows of predictions.parquet where every training's answers agree within groups.

    Answers over other classes stay as they are.

    Args:
        rows: of any trainings.
        mean: what is averaged.
        groups: sample id -> group.
    """
    parts = [rows.slice(0, 0)]
    for trial in dict.fromkeys(rows["trial_id"].to_pylist()):
        part = rows.filter(pc.equal(rows["trial_id"], trial)).combine_chunks()
        flat = part["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(flat) == len(part) * mean.n_classes:
            of_photos = [groups[sample] for sample in part["sample_id"].to_pylist()]
            probs = mean.over(of_photos, flat.reshape(len(part), -1))
            part = _answering(part, probs)
        parts.append(part)
    return pa.concat_tables(parts)


def _answering(part: pa.Table, probs: Probs) -> pa.Table:
    """Return rows with other probabilities, and the classes that they make likeliest."""
    columns = {"pred": pa.array(probs.argmax(1)), "probs": pa.array(list(probs))}
    for name, column in columns.items():
        place = part.schema.get_field_index(name)
        part = part.set_column(
            place, part.schema.field(name), column.cast(part.schema.field(name).type)
        )
    return part


def _numbered(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    """Return the distinct names in sorted order and every row's number among them."""
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return [names[i] for i in order], rank[encoded.indices.to_numpy()]
