"""Answer photos with an ensemble, through the preparation it was trained with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.config import Prep
from data_prep.files import write_text
from orchestrator.base.console import Reporter
from orchestrator.base.errors import SpecError, UserError
from orchestrator.ensemble.members import Ensemble, Member
from orchestrator.evaluation import vote as voting

# Chunks that are multiples of the batch give the same answers as one large array.
_BATCH = 128
_CHUNK_BYTES = 2**28
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")

Photos = Sequence[tuple[str, Path]]  # id and place


def predict_folder(ensemble: Ensemble, photos: Path, out: Path) -> dict[str, int]:
    """Write ImageID (the path below `photos`) and ans for every photo of a folder.

    Photos that cannot be read get the majority class, as in the vote, and are counted. Bytes of a
    name that are no UTF-8 are spelled out in hexadecimal.

    Raises:
        SpecError: `out` cannot be written; this is checked before any photo is answered.
        UserError: the folder has no photos, or none that can be read.
    """
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        instead = "a folder" if out.is_dir() else f"no folder {out.parent} that can be written"
        raise SpecError(
            f"--out {out}: a file in a folder that can be written was required, found {instead}"
        )
    named = []
    for path in sorted(photos.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            named.append((_shown(path.relative_to(photos)), path))
    if not named:
        raise UserError(f"{photos}: photos ({', '.join(EXTENSIONS)}) were required, found none")
    votes = answer(ensemble, named, Reporter())
    write_text(out, voting.submission(votes))
    lost = sum(text.startswith("quarantined") for text in votes["outcome"].to_pylist())
    return {"answered": len(named) - lost, "quarantined": lost}


def _shown(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def answer(ensemble: Ensemble, photos: Photos, reporter: Reporter) -> pa.Table:
    """Let an ensemble vote on photos.

    Returns:
        The columns of votes.parquet; ImageID is the id given here.

    Raises:
        UserError: none of the photos can be read.
    """
    answered: dict[str, tuple[list[str], NDArray[np.float32]]] = {}
    quarantined: dict[str, str] = {}
    device = _device()
    by_prep: dict[str, list[Member]] = {}
    for member in ensemble.members:
        by_prep.setdefault(member.prep.model_dump_json(), []).append(member)
    for members in by_prep.values():
        ids: list[str] = []
        parts: dict[str, list[Any]] = {member.setting: [] for member in members}
        for names, images in _prepared(members[0].prep, photos, quarantined, reporter):
            ids += names
            for member in members:
                each = [probabilities(folder, images, device) for folder in member.checkpoints]
                parts[member.setting].append(np.mean(each, axis=0))
        for setting, chunks in parts.items():
            answered[setting] = (ids, np.concatenate(chunks))
    kept = {}
    for member in ensemble.members:
        ids, probs = answered[member.setting]
        kept[member.setting] = _without(ids, probs, quarantined)
    return voting.vote_table(
        [(name, name) for name, _ in photos],
        kept,
        quarantined=quarantined,
        majority=ensemble.majority,
        rule=ensemble.rule,
        weights=[member.votes for member in ensemble.members],
    )


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


def prepare_photos(prep: Prep, photos: Photos) -> PreparedPhotos:
    """Prepare photos as training did, all at once.

    Raises:
        UserError: none can be read.
    """
    lost: dict[str, str] = {}
    chunks = list(_prepared(prep, photos, lost, Reporter()))
    ids: list[str] = []
    for names, _ in chunks:
        ids += names
    return PreparedPhotos(ids, np.concatenate([images for _, images in chunks]), lost)


def _prepared(
    prep: Prep, photos: Photos, lost: dict[str, str], reporter: Reporter
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Yield chunks of ids and samples (n, H, W, 3), prepared as for training.

    `lost` gets id -> reason of the photos that cannot be read.

    Raises:
        UserError: none can be read.
    """
    from data_prep.catalog.images import decode  # noqa: PLC0415
    from data_prep.preparation.pipeline import Preparation, prepare_row  # noqa: PLC0415

    preparation = Preparation(prep, threads=os.cpu_count() or 1)
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
    """Leave out photos that another preparation could not read."""
    kept = [index for index, name in enumerate(ids) if name not in lost]
    return [ids[index] for index in kept], probs[kept]
