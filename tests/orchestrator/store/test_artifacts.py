import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import UserError
from orchestrator.base.keys import canonical, digest
from orchestrator.store.artifacts import Store


def make(store, text="x"):
    with store.draft("thing", "k" * 64, params={"a": 1}, inputs={}) as draft:
        (draft.path / "file.txt").write_text(text)
        draft.result["n"] = 3


def test_an_artifact_is_there_when_its_manifest_is(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.draft("thing", "k" * 64, params={}, inputs={}):
        raise ZeroDivisionError
    assert store.find("thing", "k" * 64) is None
    make(store)
    found = store.get("thing", "k" * 64)
    assert (found.file("file.txt").read_text(), found.result["n"]) == ("x", 3)
    assert {"files", "wall_s", "host", "git_commit", "packages"} <= set(found.manifest)
    (found.path / "manifest.json").unlink()
    assert store.find("thing", "k" * 64) is None


def test_the_loser_of_a_race_drops_its_own(tmp_path):
    store = Store(tmp_path)
    with store.draft("thing", "k" * 64, params={}, inputs={}) as draft:
        (draft.path / "file.txt").write_text("late")
        make(store, "early")
    assert store.get("thing", "k" * 64).file("file.txt").read_text() == "early"
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["k" * 64]


def test_a_flipped_byte_is_refused_with_what_to_do(tmp_path):
    store = Store(tmp_path)
    make(store)
    (tmp_path / "thing" / ("k" * 64) / "file.txt").write_text("y")
    with pytest.raises(
        UserError, match=r"sha256 is .* the manifest says .*delete .* and submit again"
    ):
        store.get("thing", "k" * 64).file("file.txt")


@pytest.mark.parametrize("bit", range(8))
def test_a_damaged_manifest_stops_nobody_and_its_artifact_is_made_again(tmp_path, bit):
    store = Store(tmp_path)
    make(store)
    path = store.get("thing", "k" * 64).path / "manifest.json"
    whole, n_damaged = path.read_bytes(), 0
    for at in range(whole.index(b'"packages"')):  # what follows is never computed with
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        for found in store.all("thing"):
            assert isinstance(found.result, dict)
            assert {name: facts["sha256"] for name, facts in found.manifest["files"].items()}
            assert {"finished", "host", "git_commit"} <= set(found.manifest)
        n_damaged += store.find("thing", "k" * 64) is None
    assert n_damaged > 50
    path.write_bytes(b"\xff" + whole)
    make(store, "again")
    assert "again" == store.get("thing", "k" * 64).file("file.txt").read_text()


def test_what_does_not_reach_the_disk_is_no_artifact(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        make(Store(tmp_path))
    monkeypatch.undo()
    assert [] == list((tmp_path / "thing").iterdir())


@given(
    st.dictionaries(
        st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    )
)
def test_a_key_does_not_depend_on_the_order_of_a_dict(value):
    assert digest(value) == digest(dict(reversed(value.items())))
    assert value == json.loads(canonical(value))


def test_a_number_that_is_none_has_no_key():
    with pytest.raises(ValueError, match="Out of range"):
        digest({"a": float("nan")})
