"""Every name that a template uses is supplied by its view.

The pages take an unknown name for nothing, so that a report fails no run. Here it is an error;
only what follows a None is nothing, because a file of a run may lack a value.
"""

import json
import shutil

import pytest
from jinja2 import ChainableUndefined, Undefined, UndefinedError
from jinja2.utils import missing

from orchestrator.report import page
from tests.orchestrator.report.fake_run import write_run
from tests.orchestrator.report.test_report import OPTIONAL_FILES, certified

UNDRAWN = "could not be drawn"


class Unsupplied(ChainableUndefined):
    def __init__(self, hint=None, obj=missing, name=None, exc=UndefinedError):
        if obj is not None and not isinstance(obj, Undefined):
            raise UndefinedError(f"{name!r} of {type(obj).__name__} is not supplied")
        super().__init__(hint, obj, name, exc)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "masks")


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    page.make_environment.cache_clear()
    monkeypatch.setattr(page, "ChainableUndefined", Unsupplied)
    yield
    page.make_environment.cache_clear()


def faults(path):
    """The sentences about sections that could not be drawn."""
    return [line for line in path.read_text().splitlines() if UNDRAWN in line]


def test_a_finished_run_and_one_with_a_certificate_supply_every_name(run, tmp_path):
    assert faults(page.build(run)) == []
    copy = certified(run, tmp_path / "certified")
    assert faults(page.build(copy)) == []
    assert faults(copy / "report/certificate.html") == []


@pytest.mark.parametrize("name", ["selection.json", "hypotheses.json", "audit.json", "folds.parquet",
                                  "trials.parquet", "curves.parquet", "predictions.parquet",
                                  "votes.parquet", "events.jsonl", "resolved.yaml", *OPTIONAL_FILES])  # fmt: skip
def test_a_run_that_lacks_a_file_supplies_every_name(run, tmp_path, name):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / name).unlink()
    assert faults(page.build(copy)) == []


def test_an_empty_folder_and_an_audit_alone_supply_every_name(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert faults(page.build(tmp_path / "empty")) == []
    (tmp_path / "audit").mkdir()
    for name in ("audit.json", "folds.parquet", "events.jsonl"):
        shutil.copyfile(run / name, tmp_path / "audit" / name)
    assert faults(page.build_audit(tmp_path / "audit")) == []


def test_a_selection_of_one_member_without_scores_supplies_every_name(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    selection = json.loads((copy / "selection.json").read_text())
    selection["members"] = selection["members"][:1]
    selection["ensemble"] = {"oof": None, "test": None}
    (copy / "selection.json").write_text(json.dumps(selection))
    assert faults(page.build(copy)) == []


def test_a_name_that_no_view_supplies_is_a_fault(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    sections = tuple(
        (anchor, title, (lambda _: {}) if anchor == "trials" else view)
        for anchor, title, view in page.SECTIONS
    )
    monkeypatch.setattr(page, "SECTIONS", sections)
    (fault,) = faults(page.build(copy))
    assert "is not supplied" in fault
