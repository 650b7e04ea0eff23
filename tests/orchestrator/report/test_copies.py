"""Sets of copies are shown as the models see them, so that a reader sees whether they are copies."""

import dataclasses
import json

import numpy as np

from orchestrator.report import page
from orchestrator.report.load import load
from orchestrator.stages.report import write_copies
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.resolved_spec import ReportFacts

NAMES = ["train/a.jpg", "train/b.jpg", "train/c.jpg"]


def planted(root, **kinds):
    root.mkdir()
    copies = {kind: {"n": len(sets), "examples": sets} for kind, sets in kinds.items()}
    (root / "audit.json").write_text(json.dumps({"n_photos": 3, "near_duplicates": copies}))
    rows = root / "rows"
    rows.mkdir()
    np.save(rows / "rows.npy", np.arange(3 * 16 * 16 * 3, dtype=np.uint8).reshape(3, 16, 16, 3))
    (rows / "rows.json").write_text(json.dumps(NAMES))
    paths = RunPaths(root)
    write_copies(paths, [rows, rows])
    return paths


def test_pairs_across_groups_are_pictures_in_the_report(tmp_path):
    paths = planted(tmp_path / "run", across_groups=[NAMES[:2]], within_group=[NAMES[1:]])
    run = load(paths.root)
    (only,) = run.copies.sets
    assert [photo.sample_id for photo in only.photos] == NAMES[:2]
    ((_, _, body),) = page.draw(run, ("audit",))
    assert body.count("data:image/jpeg;base64,") == 2
    assert "near-duplicates in different groups: <code>train/a.jpg</code> = <code>" in body
    hidden = run.resolved.model_copy(update={"report": ReportFacts(photos=False)})
    ((_, _, body),) = page.draw(dataclasses.replace(run, resolved=hidden), ("audit",))
    assert "data:image" not in body


def test_a_photo_that_preparation_lost_has_no_picture(tmp_path):
    paths = planted(tmp_path / "run", train_and_test=[[NAMES[0], "test/lost.jpg"]])
    run = load(paths.root)
    assert [bool(photo.jpeg) for photo in run.copies.sets[0].photos] == [True, False]
    ((_, _, body),) = page.draw(run, ("audit",))
    assert "data:image" not in body


def test_without_copies_there_is_no_file(tmp_path):
    paths = planted(tmp_path / "run", within_group=[NAMES[:2]])
    assert not paths.copies.exists()
