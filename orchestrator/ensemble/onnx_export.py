"""The members of an ensemble as ONNX files, and a script that answers with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.files import write_json
from orchestrator.base.errors import UserError
from orchestrator.ensemble.members import Ensemble, Member
from orchestrator.ensemble.predict import probabilities
from orchestrator.store import tables

FACTS = "onnx.json"
SCRIPT = "answer.py"
TOLERANCE = 1e-4
"""How far a probability of the ONNX file may be from that of the checkpoint, on a CPU."""
TEXT = f"""
    python {SCRIPT} CROPS --out answers.csv

answers prepared photos with onnxruntime, numpy and Pillow alone; torch is not needed. CROPS is a
folder of photos after the preparation that ensemble.json describes, in the size that {FACTS}
names. Every ONNX file takes `photos`, (N, H, W, 3) uint8, and gives `probabilities`, (N, classes);
the normalization and the views are inside. A member's answer is the mean over its files. Where
{FACTS} names labels under group_mean, --folders-are-groups averages them over each folder's photos.
"""
_N_PHOTOS = 64


@dataclass(frozen=True)
class _Photos:
    """Prepared photos that the files are compared on."""

    images: NDArray[np.uint8]  # (N, H, W, 3)
    kind: str  # held out | of the run | noise


def write_onnx(ensemble: Ensemble, folder: Path) -> None:
    """Write every checkpoint of an ensemble as ONNX, compare its answers, and add the script.

    Args:
        ensemble: the members.
        folder: of the bundle; gets `members/<setting>/<number>/model.onnx`, onnx.json, answer.py.

    Raises:
        UserError: a model has no form in ONNX, or the file answers otherwise than the checkpoint.
    """
    members = []
    for member in ensemble.members:
        names = []
        differences = []
        photos = _photos(member)
        for number, checkpoint in enumerate(member.checkpoints):
            name = f"members/{member.setting}/{number:03}/model.onnx"
            (folder / name).parent.mkdir(parents=True)
            differences.append(_export(checkpoint, folder / name, photos, member))
            names.append(name)
        facts: dict[str, Any] = {"setting": member.setting, "votes": member.votes, "files": names}
        if member.adjustment:
            facts["adjustment"] = [label.to_json() for label in member.adjustment]
        parity = {
            "photos": photos.kind,
            "n_photos": len(photos.images),
            "max_difference": max(differences),
        }
        members.append({**facts, "size": member.prep.size, "parity": parity})
    described: dict[str, Any] = {"rule": ensemble.rule, "classes": dict(ensemble.classes)}
    if ensemble.group_mean:
        described["group_mean"] = list(ensemble.group_mean)
    described["members"] = members
    write_json(folder / FACTS, described)
    script = files("orchestrator.ensemble").joinpath("answer.py.txt").read_text("utf-8")
    (folder / SCRIPT).write_text(script, encoding="utf-8")


def _export(checkpoint: Path, out: Path, photos: _Photos, member: Member) -> float:
    """Write one checkpoint as ONNX; return the largest difference of a probability."""
    import onnxruntime as ort  # noqa: PLC0415

    from trainers.inference import export_onnx  # noqa: PLC0415

    who = f"member {member.setting} ({member.variant})"
    try:
        export_onnx(checkpoint, out)
        session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        (answered,) = session.run(["probabilities"], {"photos": photos.images})
    except Exception as error:  # noqa: BLE001 - both libraries, and code of a user, raise any
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{who}: a model that can be written as ONNX was required, found: {reason}; "
            "make the bundle without --onnx"
        ) from None
    difference = float(np.abs(answered - probabilities(checkpoint, photos.images)).max())
    if difference > TOLERANCE:
        raise UserError(
            f"{who}: the ONNX file of {checkpoint.name} gives probabilities {difference:.2g} away "
            f"from the checkpoint's, at most {TOLERANCE:g} was required; make the bundle without "
            "--onnx"
        )
    return difference


def _photos(member: Member) -> _Photos:
    """Return prepared photos: held-out ones of the member's training where the store has them."""
    try:
        spec = json.loads((member.checkpoints[0] / "result.json").read_bytes())["spec"]
        images, kind = _stored_photos(Path(spec["rows"]), Path(spec["parts"]))
    except (OSError, ValueError, KeyError):
        size = member.prep.size
        noise = np.random.default_rng(0).integers(0, 256, (_N_PHOTOS, size, size, 3), np.uint8)
        return _Photos(noise, "noise")
    return _Photos(images, kind)


def _stored_photos(rows: Path, parts: Path) -> tuple[NDArray[np.uint8], str]:
    """Return some prepared photos and what they are."""
    from data_prep.preparation.shards import open_rows  # noqa: PLC0415

    stored = open_rows(rows)
    held_out = [("part", "=", "holdout")]
    names: list[Any] = tables.read(parts, ["sample_id"], filters=held_out)["sample_id"].to_pylist()
    places = [stored.index[name] for name in names if name in stored.index][:_N_PHOTOS]
    if places:
        return np.asarray(stored.images[places]), "held out"
    return np.asarray(stored.images[:_N_PHOTOS]), "of the run"
