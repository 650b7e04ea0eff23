"""Answer photos with an ensemble, through the preparation it was trained with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray
from rich.markup import escape

from data_prep.catalog.label_schema import Schema
from data_prep.catalog.photo_paths import EXTENSIONS, HEIF_EXTENSIONS, HEIF_REFUSAL
from data_prep.errors import some
from data_prep.files import atomic_path, write_text
from data_prep.photo_files import is_passed_over
from data_prep.prep_config import Prep
from orchestrator.base.console import Reporter
from orchestrator.base.errors import SpecError, UserError
from orchestrator.ensemble.members import Ensemble, Member
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.predictions import group_mean_of
from orchestrator.evaluation.probabilities.adjustment import adjusted
from orchestrator.evaluation.probabilities.calibration import ALL_LABELS, scale

# Chunks that are multiples of the batch give the same answers as one large array.
_BATCH = 128
_CHUNK_BYTES = 2**28
_STANDARD_INPUT = Path("-")

Photos = Sequence[tuple[str, Path | str]]  # id and place, which may be a URL of a bucket


@dataclass(frozen=True)
class Answers:
    """What an ensemble says of photos."""

    votes: pa.Table  # the columns of votes.parquet; ImageID is the id that was given
    probabilities: NDArray[np.float64]  # (N, C) means over the votes; NaN where a photo is unread

    @property
    def is_read(self) -> NDArray[np.bool_]:
        """Return which photos could be read, (N,)."""
        return ~np.isnan(self.probabilities[:, 0])

    @property
    def n_unread(self) -> int:
        """Return how many photos could not be read."""
        return int((~self.is_read).sum())

    @property
    def read_votes(self) -> pa.Table:
        """Return the votes with no answer for photos that could not be read."""
        place = self.votes.schema.get_field_index("pred")
        preds = pa.array(self.votes["pred"].to_numpy(), pa.int64(), mask=~self.is_read)
        return self.votes.set_column(place, "pred", preds)


def predict_photos(
    ensemble: Ensemble,
    photos: Path,
    out: Path,
    *,
    with_probabilities: bool = False,
    fill: bool = False,
    by_folder: bool = False,
) -> dict[str, int]:
    """Write a CSV with ImageID and ans for every photo, and with more where it is asked for.

    Photos that cannot be read have an empty answer and are counted. Bytes of a name that are no
    UTF-8 are spelled out in hexadecimal.

    Args:
        ensemble: what answers.
        photos: as for `find_photos`.
        out: the file to write.
        with_probabilities: add the columns of `answer_table`.
        fill: give photos that cannot be read the majority class, for a contest that needs all rows.
        by_folder: the photos of a folder are one group, over which the ensemble averages labels.

    Raises:
        SpecError: `out` cannot be written; this is checked before any photo is answered.
        UserError: there are no photos, or none that can be read.
    """
    wanted = f"--out {out}: a file in a folder that can be written was required, found"
    if out.is_dir():
        raise SpecError(f"{wanted} a folder")
    if not os.access(out.parent, os.W_OK):
        raise SpecError(f"{wanted} no folder {out.parent} that can be written")
    named = find_photos(photos)
    reporter = Reporter()
    others = other_files(photos)
    if others:
        text = f"{len(others)} files are no photos and not answered: {some(others)}"
        if any(name.lower().endswith(HEIF_EXTENSIONS) for name in others):
            text += f". {HEIF_REFUSAL}"
        reporter.say(escape(text))
    groups = None
    if by_folder:
        groups = [str(Path(name).parent) for name, _ in named]
    _check_groups(ensemble, reporter, has_groups=by_folder)
    answers = answer_fully(ensemble, named, reporter, groups)
    if with_probabilities:
        with atomic_path(out) as beside:
            schema = Schema(dict(ensemble.classes))
            table = answer_table(answers, schema, ensemble.temperatures, fill=fill)
            pa_csv.write_csv(table, beside)
    else:
        write_text(out, voting.submission(answers.votes if fill else answers.read_votes))
    return {"answered": len(named) - answers.n_unread, "quarantined": answers.n_unread}


def find_photos(place: Path) -> list[tuple[str, Path]]:
    """Return the id and the path of every photo that a place names.

    Args:
        place: a folder (the id is the path below it), one photo (the id is its name), a text file
            with a path per line, or `-` for such lines from standard input (the id is the line).

    Raises:
        UserError: there is no photo, or a line names none.
    """
    if place.is_dir():
        named = []
        for path in _files_below(place):
            if path.suffix.lower() in EXTENSIONS:
                named.append((_shown(path.relative_to(place)), path))
    elif place.suffix.lower() in EXTENSIONS and place.is_file():
        named = [(_shown(Path(place.name)), place)]
    else:
        named = _listed(place)
    if not named:
        raise UserError(f"{place}: photos ({', '.join(EXTENSIONS)}) were required, found none")
    return named


def other_files(place: Path) -> list[str]:
    """Return the files of a folder that `find_photos` leaves out, such as HEIC photos."""
    others = []
    for path in _files_below(place) if place.is_dir() else ():
        if path.suffix.lower() not in EXTENSIONS:
            others.append(_shown(path.relative_to(place)))
    return others


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted; hidden ones, litter and notes as in training not."""
    for path in sorted(folder.rglob("*")):
        *above, name = path.relative_to(folder).parts
        is_hidden = any(is_passed_over(part, is_folder=True) for part in above)
        if path.is_file() and not is_hidden and not is_passed_over(name, is_folder=False):
            yield path


def _listed(place: Path) -> list[tuple[str, Path]]:
    """Return the photos of a list, each once."""
    if place == _STANDARD_INPUT:
        raw = sys.stdin.buffer.read()
    elif place.is_file():
        raw = place.read_bytes()
    else:
        raise UserError(f"{place}: a folder, a photo or a list of photos was required, found none")
    paths: dict[str, Path] = {}
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        path = Path(os.fsdecode(line.strip()))
        if path.suffix.lower() not in EXTENSIONS or not path.is_file():
            raise UserError(
                f"{place}, line {number}: a photo ({', '.join(EXTENSIONS)}) was required, "
                f"found {_shown(path)}; a relative path starts from the current folder"
            )
        paths[_shown(path)] = path
    return list(paths.items())


def _shown(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def answer_table(
    answers: Answers,
    schema: Schema,
    temperatures: Mapping[str, float] | None = None,
    *,
    fill: bool = False,
) -> pa.Table:
    """Return answers with names and probabilities.

    A temperature changes stated probabilities, and no answer: the vote was taken before. Those of a
    label and those of all labels together have one each, so they need not add up to each other.

    Args:
        answers: of an ensemble.
        schema: of its labels.
        temperatures: of `Ensemble`.
        fill: state the majority class for photos that could not be read; else they have none.

    Returns:
        ImageID, ans, class (its name), a column per label with the name of its class, confidence
        (the probability of the answer), votes, tie, outcome, then `p_<class>` for every class and,
        where there are several labels, `p_<label>=<class>`. A photo that could not be read has no
        probabilities.
    """
    votes = answers.votes
    preds = votes["pred"].to_numpy()
    is_stated = np.ones(len(preds), bool) if fill else answers.is_read
    of_label = temperatures or {}
    joint = ALL_LABELS if len(schema.classes) > 1 else schema.names[0]
    probs = answers.probabilities
    if joint in of_label:
        probs = scale(probs, of_label[joint])
    codes = np.array([schema.decode(int(pred)) for pred in preds])
    columns: dict[str, Any] = {
        "ImageID": votes["ImageID"],
        "ans": votes["pred"] if fill else answers.read_votes["pred"],
        "class": _known([schema.class_name(int(pred)) for pred in preds], is_stated),
    }
    if len(schema.classes) > 1:
        for position, (label, names) in enumerate(schema.classes.items()):
            columns[label] = _known([names[code] for code in codes[:, position]], is_stated)
    columns["confidence"] = _or_null(probs[np.arange(len(preds)), preds])
    columns |= {name: votes[name] for name in ("votes", "tie", "outcome")}
    for code in range(schema.n_classes):
        columns[f"p_{schema.class_name(code)}"] = _or_null(probs[:, code])
    if len(schema.classes) > 1:
        cube = answers.probabilities.reshape(-1, *schema.sizes)
        for position, (label, names) in enumerate(schema.classes.items(), 1):
            others = tuple(axis for axis in range(1, cube.ndim) if axis != position)
            label_probs = cube.sum(axis=others)
            if label in of_label:
                label_probs = scale(label_probs, of_label[label])
            for code, name in enumerate(names):
                columns[f"p_{label}={name}"] = _or_null(label_probs[:, code])
    return pa.table(columns)


def _known(names: list[str], is_stated: NDArray[np.bool_]) -> pa.Array:
    return pa.array(names, pa.string(), mask=~is_stated)


def _or_null(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(np.round(values, 6), from_pandas=True)


def answer(ensemble: Ensemble, photos: Photos, reporter: Reporter) -> pa.Table:
    """Let an ensemble vote on photos and return the columns of votes.parquet.

    Raises:
        UserError: none of the photos can be read.
    """
    return answer_fully(ensemble, photos, reporter).votes


def _check_groups(ensemble: Ensemble, reporter: Reporter, *, has_groups: bool) -> None:
    """Say that photos are answered alone; refuse groups that change nothing.

    Raises:
        SpecError: the ensemble averages nothing over groups.
    """
    labels = ", ".join(ensemble.group_mean)
    if has_groups and not labels:
        raise SpecError(
            "--folders-are-groups: an ensemble of a spec with vote.group_mean was required, this "
            "one answers each photo alone; leave the option out"
        )
    if labels and not has_groups:
        reporter.say(
            f"each photo is answered alone; the certificate is about the mean of {labels} over a "
            "group's photos (--folders-are-groups)"
        )


def answer_fully(
    ensemble: Ensemble, photos: Photos, reporter: Reporter, groups: Sequence[str] | None = None
) -> Answers:
    """Let an ensemble vote on photos; ImageID is the id given here.

    Args:
        ensemble: what answers.
        photos: their ids and paths.
        reporter: is told how far the preparation is.
        groups: of the photos, over which the ensemble averages labels; None: each is alone.

    Raises:
        UserError: none of the photos can be read.
    """
    answered: dict[str, tuple[list[str], NDArray[np.float32]]] = {}
    quarantined: dict[str, str] = {}
    device = _device()
    by_prep: dict[str, list[Member]] = {}
    for member in ensemble.members:
        by_prep.setdefault(member.prep.model_dump_json(), []).append(member)
    group_of: dict[str, str] = {}
    averaging = None
    if groups is not None:
        group_of = {name: group for (name, _), group in zip(photos, groups, strict=True)}
        sizes = {name: len(classes) for name, classes in ensemble.classes.items()}
        averaging = group_mean_of(ensemble.group_mean, sizes)
    for members in by_prep.values():
        ids: list[str] = []
        parts: dict[str, list[Any]] = {member.setting: [] for member in members}
        for names, images in _prepared(members[0].prep, photos, quarantined, reporter):
            ids += names
            for member in members:
                each = [probabilities(folder, images, device) for folder in member.checkpoints]
                if averaging is None:
                    moved = [adjusted(probs, member.adjustment) for probs in each]
                    parts[member.setting].append(np.mean(moved, axis=0))
                else:
                    parts[member.setting].append(np.stack(each))
        for member in members:
            answered[member.setting] = (ids, np.concatenate(parts[member.setting], axis=-2))
    kept = {}
    for member in ensemble.members:
        ids, probs = _without(*answered[member.setting], quarantined)
        if averaging is not None:  # over the photos that every member can answer, as in the vote
            owners = [group_of[name] for name in ids]
            agreeing = [averaging.over(owners, each) for each in probs]
            probs = np.mean([adjusted(each, member.adjustment) for each in agreeing], axis=0)
        kept[member.setting] = (ids, probs)
    counts = [member.votes for member in ensemble.members]
    votes = voting.vote_table(
        [(name, name) for name, _ in photos],
        kept,
        quarantined=quarantined,
        majority=ensemble.majority,
        rule=ensemble.rule,
        weights=counts,
    )
    by_member = [probs.astype(np.float64) for _, probs in kept.values()]
    mean = np.full((len(photos), by_member[0].shape[1]), np.nan)
    is_read = np.array([name not in quarantined for name, _ in photos], bool)
    mean[is_read] = np.average(by_member, axis=0, weights=counts)
    return Answers(votes, mean)


def probabilities(
    checkpoint: Path, images: NDArray[np.uint8], device: str = "cpu"
) -> NDArray[np.float32]:
    """Return one checkpoint's probabilities (N, C) of prepared photos (N, H, W, 3)."""
    from trainers.inference import load, predict  # noqa: PLC0415

    return predict(load(checkpoint), images, batch_size=_BATCH, device=device)


def chunk_of(size: int) -> int:
    """Return how many prepared photos of a side in pixels are held at a time."""
    return max(1, _CHUNK_BYTES // (size * size * 3 * _BATCH)) * _BATCH


class PreparedPhotos(NamedTuple):
    """Photos after the steps of a preparation."""

    ids: list[str]  # of the photos that can be read
    images: NDArray[np.uint8]  # (N, H, W, 3)
    lost: dict[str, str]  # id -> why it cannot be read


def prepare_photos(prep: Prep, photos: Photos, *, threads: int | None = None) -> PreparedPhotos:
    """Prepare photos as training did, all at once.

    Args:
        prep: the spec's section.
        photos: their ids and paths.
        threads: of every library inside; None for one per core.

    Raises:
        UserError: none can be read.
    """
    lost: dict[str, str] = {}
    chunks = list(_prepared(prep, photos, lost, Reporter(), threads))
    ids: list[str] = []
    for names, _ in chunks:
        ids += names
    return PreparedPhotos(ids, np.concatenate([images for _, images in chunks]), lost)


def _prepared(
    prep: Prep,
    photos: Photos,
    lost: dict[str, str],
    reporter: Reporter,
    threads: int | None = None,
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Yield chunks of ids and samples (n, H, W, 3), prepared as for training.

    `lost` gets id -> reason of the photos that cannot be read.

    Raises:
        UserError: none can be read.
    """
    from data_prep.catalog.images import decode  # noqa: PLC0415
    from data_prep.preparation.photo_steps import Preparation, prepare_row  # noqa: PLC0415

    preparation = Preparation(prep, threads=threads or os.cpu_count() or 1)
    chunk_size = chunk_of(prep.size)
    unreadable: dict[str, str] = {}
    ids: list[str] = []
    images: list[NDArray[np.uint8]] = []
    with reporter.task("prepare", len(photos)) as advance:
        for done, (name, path) in enumerate(photos, 1):
            # as a test photo, because those are never dropped
            outcome = prepare_row((f"test/{name}", str(path), ""), preparation)
            if outcome.row is None:
                unreadable[name] = outcome.reason or "no reason was given"
            else:
                # encoded and decoded like a shard's sample, so that answers are equal
                images.append(decode(outcome.row["image"]))
                ids.append(name)
            advance(done, "")
            if len(ids) == chunk_size:
                yield ids, np.stack(images)
                ids = []
                images = []
        if ids:
            yield ids, np.stack(images)
    lost |= unreadable
    if len(unreadable) == len(photos):
        raise UserError(
            f"readable photos were required, found none among {len(photos)}: "
            f"{next(iter(unreadable.values()))}"
        )


def _device() -> str:
    import torch  # noqa: PLC0415

    return "cuda" if torch.cuda.is_available() else "cpu"


def _without(ids: list[str], probs: Any, lost: dict[str, str]) -> tuple[list[str], Any]:
    """Leave out photos that another preparation could not read; `probs` is (..., n, C)."""
    kept = [index for index, name in enumerate(ids) if name not in lost]
    return [ids[index] for index in kept], probs[..., kept, :]
