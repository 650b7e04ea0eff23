"""Runs in Python: frames with the contract's columns, objects that draw themselves, and submit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import orchestrator
from orchestrator.base.errors import SpecError, UserError
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from tests.orchestrator.board.planted import LiveDriver
from tests.orchestrator.ensemble.fake_ensemble import write_ensemble_run
from tests.orchestrator.ensemble.test_run_comparison import leave
from tests.orchestrator.report.fake_run import HOSTILE, SCHEMA, write_run
from tests.orchestrator.report.test_report import Page

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    write_run(root / "runs/masks-1", n_people=12)
    return root


@pytest.fixture(scope="module")
def ensemble_run(tmp_path_factory):
    return write_ensemble_run(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture
def run(root):
    return orchestrator.open_run("latest", store=root)


def test_importing_the_package_imports_nothing_else():
    code = "import sys, orchestrator; print(*(set(sys.modules) & {'numpy', 'pandas', 'pyarrow', 'torch', 'ray', 'pydantic', 'click'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "" == done.stdout.strip()
    assert {"open_run", "submit"} <= set(dir(orchestrator))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = orchestrator.nothing


def test_a_run_is_opened_by_name_prefix_or_folder(root, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_STORE", str(root))
    for name in ("latest", "masks", "masks-1", root / "runs/masks-1"):
        assert "masks-1" == orchestrator.open_run(name).run_id
    with pytest.raises(UserError, match="one run id or a unique prefix was required"):
        orchestrator.open_run("nobody")


def test_frames_have_the_columns_of_the_files(run):
    assert tables.trials_schema(SCHEMA.names).names == list(run.trials.columns)
    assert 68 == len(run.trials)
    assert run.trials.query("phase == 'search'")["fold"].isna().all()
    assert "Int64" == run.trials["fold"].dtype  # a whole number stays one where some are missing
    assert {"trial_id", "epoch", "val_macro_f1"} <= set(run.curves.columns)
    assert tables.PREDICTIONS.names == list(run.predictions.columns)
    assert {"ImageID", "pred", "tie"} <= set(run.votes.columns)
    with pytest.raises(UserError, match=r"catalog\.parquet was required, found none"):
        _ = run.catalog


def test_records_have_attributes_and_draw_themselves(run):
    assert "SUCCEEDED" == run.state
    assert ("a1b2c3d4", "0badcafe", "deadbeef") == run.selection.members
    assert ["supported", "undecided", "refuted"] == [claim.verdict for claim in run.hypotheses]
    assert (3, "half-cutmix > single") == (len(run.hypotheses), run.hypotheses[0].claim)
    assert "shallow > single: undecided" in repr(run.hypotheses)
    with pytest.raises(UserError, match=r"certificate\.json was required"):
        _ = run.certificate
    for item in (run, run.selection, run.hypotheses):
        html = item._repr_html_()
        Page(html)  # elements close in order
        assert "@scope (.orchestrator-view)" in html
        assert "http" not in html
    assert "stage" not in repr(run)
    assert "SUCCEEDED" in repr(run)


def test_pictures_are_those_of_the_report(run, tmp_path):
    for name in ("curves", "settings", "confusion", "classes", "agreement", "distributions"):
        view = getattr(run.plot, name)()
        assert "could not be drawn" not in view._repr_html_()
    assert "<svg" in run.plot.curves()._repr_html_()
    saved = run.plot.audit().save(tmp_path / "audit.html")
    assert "<script>" not in saved.read_text()
    assert HOSTILE.split("/")[1] not in saved.read_text()
    assert "Nothing to show" in run.plot.preparation()._repr_html_()


def test_a_live_run_is_read_from_its_ledger(tmp_path):
    driver = LiveDriver(Store(tmp_path))
    try:
        driver.start("s-1", **{"train.optimizer.lr": 0.1})
        driver.report("s-1", 1, 0.5)
        run = orchestrator.open_run("live", store=tmp_path)
        assert ("RUNNING", 0, 1) == (run.state, len(run.trials), len(run.curves))
        driver.end("s-1", score=0.5)
        assert [0.5] == run.trials["val_macro_f1"].tolist()
        assert {"train.optimizer.lr": 0.1} == json.loads(run.trials["params"][0])
        assert "trials: 1 complete" in repr(run)
        assert "<pre>" in run._repr_html_()
    finally:
        driver.leave()


def test_predict_averages_over_groups_where_the_spec_does(ensemble_run, monkeypatch):
    from dataclasses import replace

    from orchestrator.ensemble import members

    paths, _, photos = ensemble_run
    run = orchestrator.open_run(paths.root)
    files = [photos / "000.png", photos / "002.png"]
    with pytest.raises(UserError, match=r"vote\.group_mean was required"):
        run.predict(files, groups=["a", "a"])
    of_run = members.of_run
    monkeypatch.setattr(
        members, "of_run", lambda *job: replace(of_run(*job), group_mean=("gender",))
    )
    with pytest.raises(UserError, match="one of each of the 2 photos was required, found 1"):
        run.predict(files, groups=["a"])
    alone = run.predict(files)["p_gender=male"]
    together = run.predict(files, groups=["a", "a"])["p_gender=male"]
    assert alone[0] != alone[1]
    assert together.tolist() == pytest.approx([alone.mean()] * 2, abs=1e-5)


def test_predict_takes_paths_pictures_and_arrays(ensemble_run):
    paths, _, photos = ensemble_run
    run = orchestrator.open_run(paths.root)
    picture = Image.open(photos / "000.png")
    frame = run.predict([photos / "000.png", picture, np.asarray(picture)])
    assert [str(photos / "000.png"), "1", "2"] == frame["ImageID"].tolist()
    assert 1 == frame["ans"].nunique()
    assert 1 == len(run.predict(picture))
    of_classes = [f"p_{SCHEMA.class_name(code)}" for code in range(18)]
    assert pytest.approx([1.0] * 3, abs=1e-4) == frame[of_classes].sum(axis=1).tolist()
    assert 100 == len(run.predict(photos))
    with pytest.raises(UserError, match="photo 0: a file was required"):
        run.predict([photos / "nobody.png"])
    with pytest.raises(UserError, match="photos were required"):
        run.predict([])


def test_two_runs_are_compared_and_the_comparison_draws_itself(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    groups = [f"p{number // 3}" for number in range(60)]
    parts = ["whole"] * 60
    for name, share in (("good", 0.9), ("bad", 0.5)):
        preds = np.where(rng.random(60) < share, labels, (labels + 1) % 3)
        leave(tmp_path, name, preds, labels, parts, groups)
        (tmp_path / "runs" / name / "events.jsonl").touch()
    run = orchestrator.open_run("good", store=tmp_path)
    comparison = run.compare("bad")
    facts = comparison.facts["differences"]["macro_f1"]
    assert facts["difference"] > 0.2
    assert ["good", "bad"] == [row["run_id"] for row in comparison.facts["runs"]]
    assert f"{facts['difference']:+.3f}" in repr(comparison)
    html = comparison._repr_html_()
    Page(html)
    assert "good" in html
    again = run.compare(orchestrator.open_run("bad", store=tmp_path))
    assert facts["difference"] == again.facts["differences"]["macro_f1"]["difference"]


def test_a_spec_with_problems_starts_nothing(tmp_path):
    with pytest.raises(SpecError, match=r"the spec:\d+:\d+.*required"):
        orchestrator.submit({"version": 1, "name": "x"}, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.ray
@pytest.mark.models
@pytest.mark.slow
def test_a_spec_as_a_dict_is_run_and_the_notebook_reads_it(tutorial, monkeypatch):
    """Its trainings are in the store, where the tutorial left them."""
    from ruamel.yaml import YAML

    monkeypatch.chdir(tutorial.root)
    monkeypatch.setenv("ORCHESTRATOR_STORE", str(tutorial.root / "store"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    spec = YAML(typ="safe", pure=True).load((tutorial.root / "plants.yaml").read_text())
    run = orchestrator.submit(spec, overrides={"name": "as-a-dict", "vote.rule": "soft"})
    assert run.run_id.startswith("as-a-dict-")
    assert "SUCCEEDED" == run.state
    assert run.certificate.statement
    assert "sample_id" in run.catalog.columns
    done = subprocess.run(
        [sys.executable, ROOT / "experiments/notebook.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert run.trials["trial_id"][0] in done.stdout
