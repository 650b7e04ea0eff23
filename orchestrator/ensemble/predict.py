"""Answer photos with an ensemble, through the preparation it was trained with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.config import Prep
from orchestrator.base.console import Reporter
from orchestrator.base.errors import SpecError, UserError
from orchestrator.ensemble.members import Ensemble, Member
from orchestrator.evaluation import vote as voting

_BATCH = 128  # of `trainers.inference.predict`: chunks that are multiples of it give the answers of one large array
_CHUNK_BYTES = 2**28
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")

Photos = Sequence[tuple[str, Path]]  # id and place


def predict_folder(ensemble: Ensemble, photos: Path, out: Path) -> dict[str, int]:
    """Write ImageID (the path below `photos`) and ans for every photo of a folder.

    Photos that cannot be read get the majority class, like in the vote, and are counted. Bytes of a name that are no
    UTF-8 are spelled out in hexadecimal.

    Raises:
        SpecError: `out` cannot be written; told before any photo is answered.
        UserError: the folder has no photos, or none that can be read.
    """
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        instead = "a folder" if out.is_dir() else f"no folder {out.parent} that can be written"
        raise SpecError(
            f"--out {out}: a file in a folder that can be written was required, found {instead}"
        )
    found = sorted(
        path for path in photos.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()
    )
    if not found:
        raise UserError(f"{photos}: photos ({', '.join(EXTENSIONS)}) were required, found none")
    votes = answer(
        ensemble, [(_shown(path.relative_to(photos)), path) for path in found], Reporter()
    )
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.write_text(voting.submission(votes), encoding="utf-8")
    beside.replace(out)
    lost = sum(text.startswith("quarantined") for text in votes["outcome"].to_pylist())
    return {"answered": len(found) - lost, "quarantined": lost}


def _shown(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def answer(ensemble: Ensemble, photos: Photos, reporter: Reporter) -> pa.Table:
    """Let an ensemble vote on photos; returns the columns of votes.parquet, ImageID being the id given here.

    Raises:
        UserError: none of the photos can be read.
    """
    answered: dict[str, tuple[list[str], Any]] = {}
    quarantined: dict[str, str] = {}
    device = _device()
    by_prep: dict[str, list[Member]] = {}
    for member in ensemble.members:
        by_prep.setdefault(member.prep.model_dump_json(), []).append(member)
    for same in by_prep.values():
        ids: list[str] = []
        parts: dict[str, list[Any]] = {member.setting: [] for member in same}
        for names, images in _prepared(same[0].prep, photos, quarantined, reporter):
            ids += names
            for member in same:
                each = [probabilities(one, images, device) for one in member.checkpoints]
                parts[member.setting].append(np.mean(each, axis=0))
        answered |= {setting: (ids, np.concatenate(found)) for setting, found in parts.items()}
    members = {member.setting: answered[member.setting] for member in ensemble.members}
    kept = {setting: _without(ids, probs, quarantined) for setting, (ids, probs) in members.items()}
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


def prepare_photos(
    prep: Prep, photos: Photos
) -> tuple[list[str], NDArray[np.uint8], dict[str, str]]:
    """Prepare photos as training did, all at once.

    Returns:
        Ids of the readable ones, their samples (N, H, W, 3), and id -> reason of the others.

    Raises:
        UserError: none can be read.
    """
    lost: dict[str, str] = {}
    chunks = list(_prepared(prep, photos, lost, Reporter()))
    return (
        [name for names, _ in chunks for name in names],
        np.concatenate([images for _, images in chunks]),
        lost,
    )


def _prepared(
    prep: Prep, photos: Photos, lost: dict[str, str], reporter: Reporter
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Yield chunks of ids and samples (n, H, W, 3), as training saw them; `lost` gets id -> reason of the others.

    Raises:
        UserError: none can be read.
    """
    from data_prep.catalog.images import decode  # noqa: PLC0415
    from data_prep.preparation.pipeline import Preparation, prepare_row  # noqa: PLC0415

    preparation, most = Preparation(prep, threads=os.cpu_count() or 1), chunk_of(prep.size)
    own: dict[str, str] = {}
    ids, images = list[str](), list[NDArray[np.uint8]]()
    with reporter.task("prepare", len(photos)) as advance:
        for done, (name, path) in enumerate(photos, 1):
            outcome = prepare_row(
                (f"test/{name}", str(path), ""), preparation
            )  # a test photo: it is never dropped
            if outcome.row is None:
                own[name] = outcome.reason or "no reason was given"
            else:
                # encoded and decoded like a shard's sample, so that the answer equals the stored one
                images.append(decode(outcome.row["image"]))
                ids.append(name)
            advance(done, "")
            if len(ids) == most:
                yield ids, np.stack(images)
                ids, images = [], []
        if ids:
            yield ids, np.stack(images)
    lost |= own
    if len(own) == len(photos):
        raise UserError(
            f"readable photos were required, found none among {len(photos)}: {next(iter(own.values()))}"
        )


def _device() -> str:
    import torch  # noqa: PLC0415

    return "cuda" if torch.cuda.is_available() else "cpu"


def _without(ids: list[str], probs: Any, lost: dict[str, str]) -> tuple[list[str], Any]:
    at = [place for place, name in enumerate(ids) if name not in lost]
    return [ids[place] for place in at], probs[at]
