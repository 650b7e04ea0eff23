from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from data_prep.catalog.fingerprint import fingerprint
from data_prep.errors import DataError


def test_it_does_not_depend_on_where_the_data_lies(contest, tmp_path):
    first = fingerprint(contest.data(), contest.base)
    shutil.copytree(contest.base, tmp_path / "elsewhere" / "x", copy_function=shutil.copy2)
    assert first == fingerprint(contest.data(), tmp_path / "elsewhere" / "x")


@pytest.mark.parametrize("change", ["grow", "touch", "add", "remove", "rename", "table"])
def test_every_change_of_files_changes_it(contest, change):
    data, first = contest.data(), fingerprint(contest.data(), contest.base)
    photo = contest.base / "eval/images/a.jpg"
    if change == "grow":
        facts = photo.stat()
        photo.write_bytes(photo.read_bytes() + b"x")
        os.utime(photo, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif change == "touch":
        os.utime(photo, ns=(1, 1))
    elif change == "add":
        contest.photo("train/images/new/mask1.jpg", 5)
    elif change == "remove":
        photo.unlink()
    elif change == "rename":
        photo.rename(photo.with_name("z.jpg"))
    else:
        contest.people[0]["age"] = 23
        contest.save()
    assert first != fingerprint(data, contest.base)


@pytest.mark.parametrize(
    ("lost", "where"),
    [("train", "source.root"), ("eval/images", "test.root"), ("eval/info.csv", "test.table")],
)
def test_a_missing_root_or_table_is_named(contest, lost, where):
    path = contest.base / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=rf"data\.{where}.*{lost.partition('/')[0]}") as raised:
        fingerprint(contest.data(), contest.base)
    assert f"data.{where}" == raised.value.path


def test_a_loop_of_links_ends(contest):
    (contest.images / "loop").symlink_to(contest.images, target_is_directory=True)
    (contest.images / "nothing.jpg").symlink_to(contest.base / "gone")
    assert len(fingerprint(contest.data(), contest.base)) == 64


def test_planning_imports_nothing_heavy():
    code = "import sys, data_prep.catalog.fingerprint, data_prep.catalog.label_schema; print([m for m in ('numpy', 'pyarrow', 'PIL') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
