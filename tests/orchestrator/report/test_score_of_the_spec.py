"""The page and `results` speak of the score that the spec names, and warn where it is worthless."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from ruamel.yaml import YAML
from sklearn.metrics import average_precision_score

from data_prep.catalog.label_schema import Schema
from orchestrator.report import caveats, confusion_matrices, page
from orchestrator.report.command_text.result_tables import ensemble_lines, render_results
from orchestrator.report.diagnosis_section import rare_class
from orchestrator.report.load import Run, load
from orchestrator.store import tables
from orchestrator.store.run_files.audit import AuditFacts
from orchestrator.store.run_files.records import as_record
from orchestrator.store.run_files.selection import Selection
from tests.orchestrator.report.fake_run import write_run


def drawn(run, anchor):
    """Return a section as text."""
    ((_, _, body),) = page.draw(run, (anchor,))
    return str(body)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("store") / "runs" / "masks-1a2b3c4d")


@pytest.fixture
def other(plain, tmp_path):
    """A run by accuracy, as the stages write it."""
    place = tmp_path / "masks-other"
    place.mkdir()
    for path in plain.iterdir():
        if path.is_file():
            (place / path.name).write_bytes(path.read_bytes())
    yaml = YAML()
    resolved = yaml.load((place / "resolved.yaml").read_text())
    with (place / "resolved.yaml").open("w") as handle:
        yaml.dump(resolved | {"score": "accuracy"}, handle)
    selection = json.loads((place / "selection.json").read_text())
    selection["score"] = "accuracy"
    for name in ("oof", "test"):
        scores = selection["ensemble"][name]
        scores["score"] = {"estimate": 0.7654, "low": 0.7, "high": 0.8, "n_groups": 9}
    selection["ensemble"]["corrected"] = None
    for candidate in selection["candidates"]:
        candidate["oof_score"] = 0.4321
    (place / "selection.json").write_text(json.dumps(selection))
    return place


def test_the_page_names_the_score_and_shows_its_number(other):
    run = load(other)
    result = drawn(run, "result")
    assert "is expected to reach at least accuracy <strong>0.765" in result
    assert "Accuracy out of fold: expected on new photos" in result
    assert "OOF accuracy" in drawn(run, "selection")
    assert "0.432" in drawn(run, "selection")
    assert "accuracy" in drawn(run, "trials")
    lines = "\n".join(ensemble_lines(other))
    assert "out-of-fold  accuracy 0.765 (90 % interval 0.700 to 0.800); n" in lines
    table = render_results(other, "table")
    assert "oof_accuracy" in table
    assert "out-of-fold score" not in table


def test_subgroups_halves_and_quick_models_name_the_score_and_show_its_number(other):
    selection = json.loads((other / "selection.json").read_text())
    selection["score"] = "balanced_accuracy of age"
    f1 = {"estimate": 0.1111, "low": 0.1, "high": 0.2, "n_groups": 9, "n_samples": 40}
    score = f1 | {"estimate": 0.6543}
    group = {"column": "age", "value": "<30", "macro_f1": f1, "accuracy": f1, "score": score}
    selection["ensemble"]["subgroups"] = [group]
    half = {"who": "ensemble", "public_accuracy": 0.5, "private_accuracy": 0.5}
    half |= {"public_macro_f1": 0.1111, "private_macro_f1": 0.1111}
    half |= {"public_score": 0.6789, "private_score": 0.6788}
    selection["ensemble"]["board"] = [half]
    (other / "selection.json").write_text(json.dumps(selection))
    yaml = YAML()
    resolved = yaml.load((other / "resolved.yaml").read_text())
    with (other / "resolved.yaml").open("w") as handle:
        yaml.dump(resolved | {"score": "balanced_accuracy of age"}, handle)
    run = load(other)
    subgroups = drawn(run, "subgroups")
    assert '<th scope="col" class="n">balanced accuracy of age</th>' in subgroups
    assert "0.654" in subgroups
    assert "Balanced accuracy of age of a subgroup is the mean over the classes" in subgroups
    assert "macro F1" not in subgroups
    table = render_results(other, "table")
    assert "balanced_accuracy_of_age" in table
    assert "0.654" in table
    board = drawn(run, "board")
    assert "0.6789" in board
    assert "macro F1" not in board
    title = {"title": "balanced accuracy of age", "of_label": "balanced accuracy"}
    span = {"estimate": 0.7777, "low": 0.7, "high": 0.8}
    probe = {"macro_f1": f1, "score": span, "rim": f1, "chance": f1, "classes": ["a", "b"]}
    probe["confusion"] = [[3, 1], [1, 3]]
    facts = {"score": title, "probe": {"n_photos": 40, "n_groups": 9, "labels": {"age": probe}}}
    audit = drawn(dataclasses.replace(run, audit=as_record(AuditFacts, facts)), "audit")
    assert '<th scope="col" class="n">balanced accuracy</th>' in audit
    assert "balanced accuracy of age by this split" in audit
    assert "0.778" in audit


def test_macro_f1_stays_where_the_spec_names_no_score(plain):
    assert "is expected to reach at least macro F1 <strong>" in drawn(load(plain), "result")
    assert "oof_macro_f1" in render_results(plain, "table")


def test_a_score_no_better_than_a_guess_is_the_first_line_in_red(plain):
    """The quick smoke of a user reached 0.05 of 18 classes, and the page praised its vote."""
    run = load(plain)
    assert "alarm" not in drawn(run, "result")
    ensemble = run.selection.ensemble
    worthless = {"macro_f1": {"estimate": 0.05, "low": 0.04, "high": 0.07}}
    changed = as_record(Selection, {**run.selection.model_dump(), "ensemble": {"oof": worthless}})
    assert ensemble.oof.headline.estimate > 0.05
    body = drawn(dataclasses.replace(run, selection=changed), "result")
    assert body.lstrip().startswith('<p class="alarm">This ensemble is no better than guessing:')
    assert "macro F1 0.050, a guess reaches about 0.056" in body


def test_a_guess_at_accuracy_is_the_share_of_the_largest_class(other):
    """Nine of ten right is no skill where nine of ten photos are of one class."""
    run = load(other)
    _, n_of_class = np.unique(run.answers["oof"].targets, return_counts=True)
    share = n_of_class.max() / n_of_class.sum()
    assert f"A guess by class shares reaches about {share:.3f}" in drawn(run, "result")


def test_a_curve_of_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.2
    sure = np.round(np.clip(0.3 * truth + 0.5 * rng.random(200), 0, 1), 2)  # with equal ones
    curve = confusion_matrices.precision_recall(sure, truth)
    assert curve.average == pytest.approx(average_precision_score(truth, sure))
    assert curve.recalls[-1] == 1.0
    assert curve.precisions[-1] == pytest.approx(truth.mean())


def test_a_task_of_two_classes_shows_its_rarer_class(tmp_path):
    rng = np.random.default_rng(1)
    rows = []
    for i in range(100):
        target = int(i % 10 == 0)
        sure = float(np.clip(0.6 * target + 0.4 * rng.random(), 0, 1))
        rows.append(
            {"trial_id": "t", "setting": "m", "variant": "v", "seed": 0, "fold": 0, "sample_id": f"s{i}", "split": "oof",
             "target": target, "pred": int(sure > 0.5), "probs": [1 - sure, sure]}
        )  # fmt: skip
    run = Run(
        tmp_path,
        schema=Schema({"state": ["healthy", "ill"]}),
        predictions=pa.Table.from_pylist(rows, tables.PREDICTIONS),
        selection=as_record(Selection, {"members": ["m"], "weights": [1]}),
    )
    rare = rare_class(run)
    assert (rare.name, rare.scores.n, rare.n) == ("ill", 10, 100)
    assert rare.average_precision == pytest.approx(1.0)
    assert rare.f1.low < rare.f1.estimate == rare.scores.f1
    assert (rare.f1.n_groups, rare.f1.too_narrow) == (10, True)
    assert "average precision 1.000; a guess has 0.100" in drawn(run, "classes")
    three = dataclasses.replace(run, schema=Schema({"state": ["a", "b", "c"]}))
    assert rare_class(three) is None


@pytest.mark.parametrize(
    ("gap", "level"),
    [
        ({"difference": 0.0, "low": -0.01, "high": 0.01}, "warn"),
        ({"difference": 0.08, "low": -0.01, "high": 0.17}, "bad"),
        (None, "bad"),
    ],
)
def test_a_leak_that_lifts_no_score_is_no_serious_finding(plain, gap, level):
    facts = {
        "variants": {"base": {"leak": 0.4}},
        "leak_gap": {"base": gap} if gap else {},
        "warnings": [{"kind": "leak", "what": "variant base: 40%", "n": 3, "do": "split"}],
    }
    run = dataclasses.replace(load(plain), audit=as_record(AuditFacts, facts))
    levels = [item.level for item in caveats._about_the_data(run)]
    assert levels == [level]
