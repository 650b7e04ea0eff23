"""Failures of a preparation by class: what prep.json says and when it warns."""

import pyarrow as pa

from orchestrator.stages.prepare import _Crop, _rates, _warnings

LABELS = {"mask": ["wear", "bare"], "gender": ["male", "female"]}


def test_a_failure_that_follows_a_label_is_counted_and_warned_of():
    """40 photos; the face is lost on 15 of 20 masked ones and on no other. Gender has no part."""
    samples = [f"train/{i}" for i in range(40)]
    catalog = pa.table(
        {
            "sample_id": samples,
            "label_mask": [i // 20 for i in range(40)],
            "label_gender": [i % 2 for i in range(40)],
        }
    )
    crops = [_Crop(sample, 0.0 if i < 15 else 0.9, 1, None) for i, sample in enumerate(samples)]
    mask, gender = _rates(catalog, LABELS, crops)
    assert mask.model_dump(by_alias=True) == {
        "failure": "no face",
        "label": "mask",
        "classes": (
            {"class": "wear", "n": 20, "failed": 15},
            {"class": "bare", "n": 20, "failed": 0},
        ),
    }
    assert [entry.failed for entry in gender.classes] == [8, 7]
    (warning,) = _warnings([mask, gender])
    assert warning.startswith("no face: 75% of mask wear (15 of 20), 0% of bare (0 of 20).")
