"""A member's adjustment through predict and bundle: every answer is moved as selection.json says."""

import json
from importlib.resources import files

import numpy as np
import pytest

from orchestrator.base.console import Reporter
from orchestrator.ensemble.bundle import open_bundle, write_bundle
from orchestrator.ensemble.members import of_run
from orchestrator.ensemble.predict import answer_fully, probabilities
from orchestrator.evaluation.probabilities.adjustment import AdjustedLabel, adjusted
from tests.orchestrator.ensemble.fake_ensemble import SIZES, write_ensemble_run

LABELS = [
    {"label": name, "temperature": 0.5 + place, "shift": np.linspace(-2, 2, n).tolist()}
    for place, (name, n) in enumerate(SIZES.items())
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The fake run, its first member adjusted and the other as it was trained."""
    paths, store, photos = write_ensemble_run(tmp_path_factory.mktemp("adjusted"))
    selection = json.loads(paths.selection.read_text())
    selection["vote"]["adjusted"] = {"members": {"bbbb0000": LABELS}}
    paths.selection.write_text(json.dumps(selection))
    return paths, store, photos


def test_predict_and_bundle_move_the_answers_of_each_checkpoint(run, tmp_path):
    paths, store, photos = run
    named = [(name, photos / name) for name in ("000.png", "002.png")]
    ensemble = of_run(paths, store)
    first, second = ensemble.members
    assert (len(first.adjustment), second.adjustment) == (3, ())
    answers = answer_fully(ensemble, named, Reporter(quiet=True))
    write_bundle(paths, store, tmp_path / "bundle")
    with open_bundle(tmp_path / "bundle") as opened:
        assert opened.members[0].adjustment == first.adjustment
        again = answer_fully(opened, named, Reporter(quiet=True))
    np.testing.assert_array_equal(answers.probabilities, again.probabilities)
    described = json.loads((tmp_path / "bundle/ensemble.json").read_text())
    assert described["members"][0]["adjustment"] == LABELS
    assert "adjustment" not in described["members"][1]


def test_a_members_mean_is_that_of_its_adjusted_checkpoints(run):
    ensemble = of_run(*run[:2])
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    member = ensemble.members[0]
    plain = [probabilities(folder, images) for folder in member.checkpoints]
    moved = [adjusted(probs, member.adjustment) for probs in plain]
    assert np.abs(np.mean(moved, axis=0) - np.mean(plain, axis=0)).max() > 0.01
    np.testing.assert_allclose(1.0, np.sum(moved[0], axis=1), rtol=1e-5)


def test_the_script_beside_onnx_files_moves_answers_alike():
    text = files("orchestrator.ensemble").joinpath("answer.py.txt").read_text("utf-8")
    script = {"__name__": "answer", "__file__": __file__}
    exec(compile(text, "answer.py", "exec"), script)
    probs = np.random.default_rng(0).dirichlet(np.ones(18), 50).astype(np.float32)
    labels = [
        AdjustedLabel(row["label"], row["temperature"], tuple(row["shift"])) for row in LABELS
    ]
    np.testing.assert_array_equal(adjusted(probs, labels), script["adjusted"](probs, LABELS))
    assert script["adjusted"](probs, []) is probs
