"""Completes a made-up run with what only some runs have: subgroups, doubtful labels, photos, a certificate."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image

from tests.orchestrator.report.fake_run import HOSTILE
from tests.orchestrator.report.test_diagnosis_section import CALIBRATION, NOISE, RACE, SUBGROUPS


def complete(root: Path) -> Path:
    """Give a run of `fake_run.write_run` every section of the report and return it."""
    selection = json.loads((root / "selection.json").read_text())
    selection["ensemble"] |= {
        "subgroups": SUBGROUPS,
        "label_noise": NOISE,
        "calibration": CALIBRATION,
    }
    jpeg = _photo()
    answer = {"given": 0, "answer": 3, "confidence": 0.93, "votes": 2, "n_votes": 3}
    photos = []
    for kind in ("sure_wrong", "disputed", "suspect"):
        for name in (HOSTILE, "train/000003/normal.jpg"):
            photos.append({"kind": kind, "sample_id": name, "jpeg": jpeg, **answer})
    film = {"sample_id": HOSTILE, "kind": "ordinary", "worth": 1.0, "frames": [jpeg, jpeg]}
    classes = [{"class": name, "n": 40, "failed": 10} for name in ("wear", "not_wear")]
    prepared = {
        "variants": ["single"],
        "steps": ["decoding", {"step": {"name": "crop_face", "margin": 0.25}, "version": 2}],
        "counts": {"photos": 60, "no face": 10},
        "seconds": {"crop_face": 0.0153},
        "rates": [{"failure": "no face", "label": "mask", "classes": classes}],
        "warnings": ["no face: 25% of mask wear"],
        "sheet": [film],
    }
    certificate = {
        "statement": "It is so.",
        "race": RACE,
        "worst_groups": [{"group": HOSTILE, "accuracy": 0.5, "n": 7}],
        "looked_at": [{"what": "test labels", "times": 1, "why": "the test score"}],
    }
    files = {
        "selection.json": selection,
        "gallery.json": {"method": "by eye", "photos": photos},
        "prep.json": {"sets": [prepared]},
        "certificate.json": certificate,
    }
    for name, value in files.items():
        (root / name).write_text(json.dumps(value))
    return root


def _photo() -> str:
    stream = io.BytesIO()
    Image.new("RGB", (96, 96), (90, 140, 190)).save(stream, "JPEG")
    return base64.b64encode(stream.getvalue()).decode()
