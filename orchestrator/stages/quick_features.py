"""Features of photos by a frozen backbone, kept in the store: the input of quick models."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.base.keys import digest, stage_key
from orchestrator.base.stage_versions import QUICK_BACKBONE, VERSIONS
from orchestrator.cluster.ray_tasks import ray_map
from orchestrator.planning.run_environment import Env

if TYPE_CHECKING:  # torch takes seconds
    from data_prep.roots.places import Read
    from trainers.model import Classifier

SIDE = 96  # pixels; 300 photos a second and core
MAX_PHOTOS = 4000
"""More photos hardly improve a quick model. Whole groups are taken, in the order of a hash."""
VIEWS = ("whole", "rim")
_RIM = 0.15  # of each side; the middle, which is the subject, is blanked
_CHUNK = 128  # photos a task

Floats = NDArray[np.float32]


def chosen(catalog: pa.Table) -> pa.Table:
    """Return at most 4,000 labelled photos in the catalog's order, whole groups where they fit."""
    rows = catalog.filter(pc.and_(pc.equal(catalog["status"], "ok"), pc.is_valid(catalog["label"])))
    if len(rows) <= MAX_PHOTOS:
        return rows
    groups = rows["group"].to_pylist()
    sizes = Counter(groups)
    kept = set()
    n = 0
    for group in sorted(sizes, key=_hash):
        if n + sizes[group] <= MAX_PHOTOS:
            kept.add(group)
            n += sizes[group]
    if len(kept) > 1:
        return rows.filter(pa.array([group in kept for group in groups]))
    samples = rows["sample_id"].to_pylist()  # groups of thousands: a part of each
    some = set(sorted(samples, key=_hash)[:MAX_PHOTOS])
    return rows.filter(pa.array([sample in some for sample in samples]))


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def features(env: Env, rows: pa.Table, view: str) -> Floats:
    """Return the features of photos, (n_photos, n_features), from the store where it has them.

    Args:
        env: of the run.
        rows: of the catalog.
        view: "whole", or "rim": the middle blanked.
    """
    from data_prep.catalog.photo_paths import photo_path  # noqa: PLC0415
    from data_prep.weights.cache import hashes  # noqa: PLC0415

    samples = rows["sample_id"].to_pylist()
    shas = rows["sha256"].to_pylist()
    params = {
        "backbone": QUICK_BACKBONE,
        "weights": hashes(QUICK_BACKBONE),
        "side": SIDE,
        "view": view,
    }
    key = stage_key("features", VERSIONS["features"], params, {"photos": digest(shas)})
    with env.single_flight("features", key, "computes features of the same photos"):
        artifact = env.store.find("features", key)
        if artifact is None:
            photos = []
            for sample, sha256 in zip(samples, shas, strict=True):
                path = photo_path(env.experiment.spec.data, env.experiment.base, sample)
                photos.append((path, sha256))
            parts = _compute(env, photos, view, env.store.work_dir("features", key))
            with env.store.draft("features", key, params=params, inputs={}) as draft:
                np.save(draft.path / "features.npy", np.concatenate(parts))
            artifact = env.store.get("features", key)
    loaded: Floats = np.load(artifact.file("features.npy"))
    return loaded


def _compute(env: Env, photos: list[tuple[str, str]], view: str, work: Path) -> list[Any]:
    """Embed photos in chunks."""
    chunks = [photos[start : start + _CHUNK] for start in range(0, len(photos), _CHUNK)]
    parts = []
    n_done = 0
    with env.console.task(f"audit {view}", len(photos)) as advance:
        for part in _resumable(chunks, view, work, on_bucket=env.reads_bucket):
            parts.append(part)
            n_done += len(part)
            advance(n_done, "features")
    return parts


def _resumable(
    chunks: list[list[tuple[str, str]]], view: str, work: Path, *, on_bucket: bool
) -> Iterator[Any]:
    """Yield the features of chunks in order; each is kept in a file and read from it later."""
    files = [work / f"{number:05}.npy" for number in range(len(chunks))]
    jobs = []
    for chunk, file in zip(chunks, files, strict=True):
        if not file.is_file():
            jobs.append((chunk, view))
    computed = iter(ray_map(_embed, jobs, name="features", on_bucket=on_bucket))
    for file in files:
        if not file.is_file():
            beside = file.with_suffix(".part")
            with beside.open("wb") as handle:
                np.save(handle, next(computed))
            beside.replace(file)
        yield np.load(file)


def _embed(job: tuple[list[tuple[str, str]], str]) -> Floats:
    """Embed some photos; runs as a Ray task on one core."""
    import torch  # noqa: PLC0415

    from data_prep.catalog.images import MAX_BYTES  # noqa: PLC0415
    from data_prep.roots.places import read_ahead  # noqa: PLC0415

    listed, view = job
    model = _backbone()
    pictures = []
    reads = read_ahead([path for path, _ in listed], MAX_BYTES)
    for (path, sha256), read in zip(listed, reads, strict=True):
        pictures.append(_seen(path, read, sha256, view))
    photos = np.stack(pictures)
    x = torch.from_numpy(photos).permute(0, 3, 1, 2).float().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        out = model.features(x)
    return np.asarray(out.numpy(), dtype=np.float32)


@functools.cache
def _backbone() -> Classifier:
    import torch  # noqa: PLC0415

    from trainers.model import build  # noqa: PLC0415
    from trainers.settings.model import Model  # noqa: PLC0415

    return (
        build(Model(backbone=QUICK_BACKBONE), {"unused": 2})
        .to(memory_format=torch.channels_last)
        .eval()
    )


def _seen(path: str, read: Read, sha256: str, view: str) -> NDArray[np.uint8]:
    """Read a photo as the quick model sees it: (96, 96, 3); black if it changed since the catalog.

    Raises:
        MachineError: not the photo is to blame, but the disk or the machine.
    """
    import cv2  # noqa: PLC0415

    from data_prep.catalog.images import PhotoError, decode  # noqa: PLC0415
    from data_prep.errors import require_machine  # noqa: PLC0415

    black = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    try:
        photo = read().data
        if hashlib.sha256(photo).hexdigest() != sha256:
            return black
        pixels = cv2.resize(
            decode(photo, near=2 * SIDE), (SIDE, SIDE), interpolation=cv2.INTER_AREA
        )
    except OSError as error:
        require_machine(error, path, str(Path(path).parent))
        return black
    except PhotoError:
        return black
    if view == "rim":
        edge = round(_RIM * SIDE)
        pixels = pixels.copy()
        # ImageNet's mean, which a normalised network takes for nothing
        pixels[edge:-edge, edge:-edge] = (124, 116, 104)
    return np.asarray(pixels, dtype=np.uint8)
