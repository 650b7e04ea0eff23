"""Stores that are damaged, closed or moved, names at the limit, and clocks that jump."""

import itertools
import os
import shutil
import subprocess
import time

import pytest
from click.testing import CliRunner

from data_prep.catalog.builder import build_catalog
from orchestrator.base.errors import UserError
from orchestrator.cli import main
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import TrialEnded
from orchestrator.store.ledger import read
from tests.conftest import ROOT
from tests.data_prep.conftest import contest  # noqa: F401 - a fixture
from tests.orchestrator.search.test_controller import outcome, play


def draft(store, key, text):
    with store.draft("thing", key, params={}, inputs={}) as made:
        (made.path / "file.txt").write_text(text)


DAMAGES = {
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path, other: path.write_bytes(b""),
    "flipped": lambda path, other: path.write_bytes(b"x" + path.read_bytes()[1:]),
    "swapped": lambda path, other: shutil.copyfile(other, path),
    "missing": lambda path, other: path.unlink(),
    "a folder": lambda path, other: (path.unlink(), path.mkdir()),
    "a dead link": lambda path, other: (path.unlink(), path.symlink_to(path.parent / "gone")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_the_store_is_never_read_and_the_message_mends_it(tmp_path, damage):
    store = Store(tmp_path)
    draft(store, "a", "first")
    draft(store, "b", "other")
    artifact = store.get("thing", "a")
    DAMAGES[damage](artifact.path / "file.txt", store.get("thing", "b").path / "file.txt")
    with pytest.raises(UserError, match=r"file\.txt: .*; delete .*/thing/a and submit again"):
        artifact.file("file.txt")
    shutil.rmtree(artifact.path)
    draft(store, "a", "first")
    assert "first" == store.get("thing", "a").file("file.txt").read_text()


@pytest.fixture
def sample(drawn, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(drawn)
    (tmp_path / "experiments").mkdir()
    shutil.copy(ROOT / "experiments/smoke.yaml", tmp_path / "experiments/spec.yaml")
    return tmp_path / "experiments/spec.yaml"


@pytest.fixture
def closed_store(tmp_path):
    """A store on a file system that is mounted read-only."""
    place = tmp_path / "closed"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", place],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_a_store_that_cannot_be_written_is_told_before_any_work(sample, closed_store, detach):
    began = time.monotonic()
    words = ["submit", str(sample), "--set", "track.wandb=null", "--store", str(closed_store)]
    result = CliRunner().invoke(main, [*words, *detach])
    assert 1 == result.exit_code, result.output
    told = f"{closed_store}: a store that can be written was required, found: Read-only file system"
    assert told in result.output
    assert time.monotonic() - began < 60, "no cluster was started"


def test_a_store_below_a_file_is_one_sentence(sample, tmp_path):
    (tmp_path / "file").touch()
    words = ["--set", "track.wandb=null", "--store", str(tmp_path / "file/store")]
    result = CliRunner().invoke(main, ["submit", str(sample), *words])
    assert 1 == result.exit_code
    assert "a store that can be written was required, found: Not a directory" in result.output


def test_names_at_the_limit_of_the_file_system_are_photos_like_others(contest):  # noqa: F811
    person = contest.images / contest.people[0]["path"]
    names = ["mask" + "x" * 247 + ".jpg", "mask" + "한" * 82 + ".jpg"]  # 255 and 254 bytes
    for number, name in enumerate(names):
        assert len(os.fsencode(name)) in (254, 255)
        contest.photo(f"train/images/{person.name}/{name}", 700 + number)
    rows = build_catalog(contest.data(), contest.base).to_pylist()
    status = {row["sample_id"].rpartition("/")[2]: row["status"] for row in rows}
    assert ["ok", "ok"] == [status[name] for name in names]


def test_a_clock_that_jumps_back_changes_no_result(tmp_path, monkeypatch):
    play(tmp_path / "calm", max_concurrent=2)
    jumps = itertools.cycle([2e9, 1e9, 1.5e9, 0.0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    play(tmp_path / "jumping", max_concurrent=2)
    assert outcome(tmp_path / "calm") == outcome(tmp_path / "jumping")
    _, trained = play(tmp_path / "jumping", max_concurrent=2)
    assert [] == trained
    ends = [e for e in read(tmp_path / "jumping/events.jsonl") if isinstance(e, TrialEnded)]
    assert all(event.wall_s < 60 for event in ends), "they are of a clock that only goes forward"
