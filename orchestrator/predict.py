"""Answer a folder of photos with a run's ensemble, through the preparation it was trained with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import tables
from orchestrator import vote as voting
from orchestrator.errors import UserError
from orchestrator.progress import Reporter
from orchestrator.reader import read
from orchestrator.runs import RunPaths
from orchestrator.spec import Experiment
from orchestrator.store import Store

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def predict_folder(paths: RunPaths, store: Store, photos: Path, out: Path) -> dict[str, int]:
    """Write ImageID (the path below `photos`) and ans for every photo of a folder.

    Photos that cannot be read get the majority class, like in the vote, and are counted.

    Raises:
        UserError: the run has no ensemble, or the folder no photos.
    """
    selection = paths.read_json("selection")
    if not selection:
        raise UserError(
            f"run {paths.run_id}: an ensemble was required, the run has none yet; see `status {paths.run_id}`"
        )
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise UserError(f"{photos}: photos ({', '.join(EXTENSIONS)}) were required, found none")
    experiment = read(paths.resolved, check_roots=False)
    phase = "confirm" if experiment.spec.confirm else "search"
    trials = [
        row for row in tables.read(paths.trials).to_pylist() if row["phase"] == phase and row["status"] == "COMPLETE"
    ]
    reporter = Reporter()
    members, quarantined = _members(experiment, store, selection["members"], trials, found, photos, reporter)
    order = [(path.relative_to(photos).as_posix(),) * 2 for path in found]
    rule = (selection.get("vote") or {}).get("rule", "hard")
    votes = voting.vote_table(order, members, quarantined=quarantined, majority=_majority(paths), rule=rule)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.write_text(voting.submission(votes), encoding="utf-8")
    beside.replace(out)
    return {"answered": len(found) - len(quarantined), "quarantined": len(quarantined)}


def _majority(paths: RunPaths) -> int:
    labels = [label for label in tables.read(paths.catalog, ["label"])["label"].to_pylist() if label is not None]
    values, counts = np.unique(labels, return_counts=True)
    return int(values[counts.argmax()])


def _members(
    experiment: Experiment,
    store: Store,
    settings: list[str],
    trials: list[dict[str, Any]],
    found: list[Path],
    root: Path,
    reporter: Reporter,
) -> tuple[dict[str, tuple[list[str], Any]], dict[str, str]]:
    """Return per member the ids it answered and its mean probabilities, and the photos that nobody can read."""
    from trainers.predict import load, predict  # noqa: PLC0415

    prepared: dict[str, tuple[list[str], Any, dict[str, str]]] = {}
    members: dict[str, tuple[list[str], Any]] = {}
    quarantined: dict[str, str] = {}
    for setting in settings:
        own = [row for row in trials if row["setting"] == setting]
        variant = own[0]["variant"]
        prep = experiment.arms[variant].prep
        name = prep.model_dump_json()
        if name not in prepared:
            prepared[name] = _prepare(prep, found, root, reporter)
            quarantined |= prepared[name][2]
        ids, images, _ = prepared[name]
        probs = []
        for row in own:
            artifact = store.get("trial", Path(row["checkpoint"]).name)
            artifact.file("weights.safetensors")
            probs.append(predict(load(artifact.path), images))
        members[setting] = (ids, np.mean(probs, axis=0))
    kept = {setting: _without(ids, probs, quarantined) for setting, (ids, probs) in members.items()}
    return kept, quarantined


def _without(ids: list[str], probs: Any, lost: dict[str, str]) -> tuple[list[str], Any]:
    at = [place for place, name in enumerate(ids) if name not in lost]
    return [ids[place] for place in at], probs[at]


def _prepare(prep: Any, found: list[Path], root: Path, reporter: Reporter) -> tuple[list[str], Any, dict[str, str]]:
    from data_prep.images import PhotoError, decode  # noqa: PLC0415
    from data_prep.prepare import Preparation  # noqa: PLC0415

    preparation = Preparation(prep, threads=os.cpu_count() or 1)
    ids, images, lost = [], [], {}
    with reporter.task("prepare", len(found)) as advance:
        for done, path in enumerate(found, 1):
            name = path.relative_to(root).as_posix()
            try:
                # encoded and decoded like a shard's sample, so that the answer equals the stored one
                images.append(decode(preparation(path.read_bytes(), always=True).image))
                ids.append(name)
            except (PhotoError, OSError) as error:
                lost[name] = str(error)
            advance(done, "")
    if not ids:
        raise UserError(f"{root}: readable photos were required, found none: {next(iter(lost.values()))}")
    return ids, np.stack(images), lost
