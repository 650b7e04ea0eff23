"""A bundle answers like the run it came from, and nothing that was changed in it is used."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from data_prep.files import file_sha256
from orchestrator.base.console import Reporter
from orchestrator.base.errors import SpecError, UserError
from orchestrator.ensemble.bundle import is_bundle, open_bundle, write_bundle
from orchestrator.ensemble.members import of_run
from orchestrator.ensemble.predict import (
    answer,
    answer_fully,
    find_photos,
    other_files,
    predict_photos,
    prepare_photos,
)
from orchestrator.spec.models import TrialShare
from orchestrator.stages.certificate import TOLERANCE, _Job, compare_answers
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.run_dir import RunPaths
from tests.orchestrator.ensemble.fake_ensemble import SIZES, write_ensemble_run
from trainers import own_parts
from trainers.checkpoint import save_weights
from trainers.model import build
from trainers.own_parts import CodeNotAllowed
from trainers.settings.model import Model
from trainers.settings.own_parts import pin

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_ensemble_run(tmp_path_factory.mktemp("bundle"))


@pytest.mark.parametrize("form", ["bundle", "bundle.zip"])
def test_a_bundle_in_an_empty_folder_answers_a_hundred_photos_like_the_run(run, tmp_path, form):
    paths, store, photos = run
    write_bundle(paths, store, tmp_path / "made" / form)
    (tmp_path / "empty").mkdir()
    shutil.move(tmp_path / "made" / form, tmp_path / "empty" / form)
    assert is_bundle(tmp_path / "empty" / form)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    wanted = answer(of_run(paths, store), [(name, photos / name) for name in names], Reporter())
    with open_bundle(tmp_path / "empty" / form) as found:
        assert found.members[0].setting == "bbbb0000"
        counts = predict_photos(found, photos, tmp_path / "out.csv")
    assert counts == {"answered": 99, "quarantined": 1}
    told = dict(line.split(",") for line in (tmp_path / "out.csv").read_text().split()[1:])
    expected = {row["ImageID"]: str(row["pred"]) for row in wanted.to_pylist()}
    assert told == {**expected, "broken.jpg": ""}
    assert len(told) == 100
    with open_bundle(tmp_path / "empty" / form) as found:
        predict_photos(found, photos, tmp_path / "filled.csv", fill=True)
    filled = dict(line.split(",") for line in (tmp_path / "filled.csv").read_text().split()[1:])
    assert filled == expected
    assert filled["broken.jpg"] == "3"  # the majority class


def folder_of(run, tmp_path):
    write_bundle(run[0], run[1], tmp_path / "bundle")
    return tmp_path / "bundle"


def opened(place):
    with open_bundle(place) as found:
        return found


@pytest.mark.parametrize(
    "name",
    [
        "members/aaaa0000/001/weights.safetensors",
        "members/bbbb0000/000/model.json",
        "ensemble.json",
    ],
)
def test_a_changed_file_is_refused_by_name(run, tmp_path, name):
    folder = folder_of(run, tmp_path)
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(UserError, match=f"{name}: sha256"):
        opened(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: required by manifest.json"):
        opened(folder)


def test_a_manifest_cannot_lead_out_of_the_bundle_and_a_zip_writes_nothing_beside_it(run, tmp_path):
    folder = folder_of(run, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../outside.txt"] = {"size_bytes": 3, "sha256": "0" * 64}
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("../outside.txt", "hi!")
    with pytest.raises(UserError, match="names below the bundle were required"):
        opened(tmp_path / "evil.zip")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="names below the bundle were required"):
        opened(folder)
    (tmp_path / "no.zip").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="a bundle was required"):
        opened(tmp_path / "no.zip")


def zipped(folder, place, compression):
    with zipfile.ZipFile(place, "w", compression) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder).as_posix())
    return place


def test_a_zip_cannot_unfold_to_more_than_it_is(run, tmp_path):
    folder = folder_of(run, tmp_path)
    assert opened(zipped(folder, tmp_path / "honest.zip", zipfile.ZIP_STORED)).members
    with pytest.raises(
        UserError, match=r"'manifest.json' is compressed; take the zip that `bundle` wrote"
    ):
        opened(zipped(folder, tmp_path / "deflated.zip", zipfile.ZIP_DEFLATED))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["zeros"] = {"size_bytes": 2**40, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "zeros").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"manifest\.json names more bytes than the zip has"):
        opened(zipped(folder, tmp_path / "promising.zip", zipfile.ZIP_STORED))
    manifest["files"]["zeros"]["size_bytes"] = 1000
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "zeros").unlink()
    mixed = zipped(folder, tmp_path / "mixed.zip", zipfile.ZIP_STORED)
    with zipfile.ZipFile(mixed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1000))
    with pytest.raises(UserError, match="'zeros' is compressed"):
        opened(mixed)


@pytest.mark.parametrize(
    "backbone", ["local-dir:{folder}", "hf-hub:someone/something", "https://somewhere/model"]
)
def test_a_stranger_s_model_comes_from_no_other_folder_and_not_from_the_net(
    run, tmp_path, monkeypatch, backbone
):
    import socket

    import timm

    from trainers.inference import load

    folder = folder_of(run, tmp_path) / "members/aaaa0000/000"
    evil = tmp_path / "evil"
    evil.mkdir()
    config = {"architecture": "test_efficientnet", "num_classes": 0, "pretrained_cfg": {"architecture": "test_efficientnet"}}  # fmt: skip
    (evil / "config.json").write_text(json.dumps(config))
    assert timm.create_model(
        f"local-dir:{evil}", num_classes=0
    )  # what timm itself does with such a name
    facts = json.loads((folder / "model.json").read_text())
    facts["model"]["backbone"] = backbone.format(folder=evil)
    (folder / "model.json").write_text(json.dumps(facts))
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("it went to the net"))
    with pytest.raises(ValueError, match="a model of timm was required, found"):
        load(folder)


def test_a_bundle_of_another_preparation_or_format_is_refused(run, tmp_path, monkeypatch):
    from data_prep.preparation import step_identity

    folder = folder_of(run, tmp_path)
    monkeypatch.setitem(step_identity.VERSIONS, "resize", 99)
    with pytest.raises(UserError, match="this installation has"):
        opened(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="format version 1 was required, found 99"):
        opened(folder)


def described(folder, change):
    """Change ensemble.json, and the manifest with it, as one who writes bundles by hand would."""
    made = change(json.loads((folder / "ensemble.json").read_text()))
    (folder / "ensemble.json").write_text(json.dumps(made))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["ensemble.json"]["sha256"] = file_sha256(folder / "ensemble.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_folder_that_is_no_bundle_is_told_in_a_sentence(run, tmp_path):
    folder = folder_of(run, tmp_path)
    for change, place in (
        (lambda made: {**made, "members": []}, "members"),
        (lambda made: {**made, "rule": "loud"}, "rule"),
        (
            lambda made: {**made, "members": [{**made["members"][0], "prep": {"steps": 3}}]},
            "members.0.prep.steps",
        ),
        (lambda made: {**made, "members": [{"checkpoints": []}]}, "members.0.setting"),
        (lambda made: [], "the whole"),
    ):
        copy = shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
        described(copy, change)
        with pytest.raises(
            UserError, match=f"ensemble.json: an ensemble was required, found in {place}: "
        ):
            opened(copy)
    for files in ([1], {"ensemble.json": {}}, {"ensemble.json": 3}, None):
        (copy / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))
        with pytest.raises(
            UserError, match=r"manifest.json: a bundle's manifest was required, found"
        ):
            opened(copy)


def test_a_zip_that_could_not_be_written_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(run[0], run[1], tmp_path / "out.zip")
    assert not list(tmp_path.iterdir())


def test_weights_that_changed_in_the_store_make_no_bundle_and_nothing_is_left_behind(run, tmp_path):
    paths, store, _ = run
    copied = Store(tmp_path / "store")
    shutil.copytree(store.root, copied.root)
    victim = copied.root / "trial/aaaa00001/weights.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"weights.safetensors: sha256 is"):
        write_bundle(RunPaths(copied.root / "runs" / paths.run_id), copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="it exists"):
        write_bundle(paths, store, tmp_path / "there")


def test_a_name_that_is_no_utf8_is_answered_and_spelled_out(run, tmp_path):
    paths, store, photos = run
    (tmp_path / "photos").mkdir()
    shutil.copyfile(photos / "000.png", tmp_path / "photos" / os.fsdecode(b"caf\xe9.png"))
    assert {"answered": 1, "quarantined": 0} == predict_photos(
        of_run(paths, store), tmp_path / "photos", tmp_path / "out.csv"
    )
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith(r"caf\xe9.png,")


def test_probabilities_agree_with_the_vote_and_sum_over_labels(run, tmp_path):
    paths, store, photos = run
    out = tmp_path / "out.csv"
    predict_photos(of_run(paths, store), photos, out, with_probabilities=True)
    rows = list(csv.DictReader(out.open()))
    named = [(row["ImageID"], photos / row["ImageID"]) for row in rows]
    votes = answer(of_run(paths, store), named, Reporter(quiet=True)).to_pylist()
    assert [
        "" if vote["outcome"].startswith("quarantined") else str(vote["pred"]) for vote in votes
    ] == [row["ans"] for row in rows]
    assert [vote["outcome"] for vote in votes] == [row["outcome"] for row in rows]
    classes = [name for name in rows[0] if name.startswith("p_") and "=" not in name[:9]]
    of_gender = ("p_gender=male", "p_gender=female")
    for row in rows:
        if row["outcome"].startswith("quarantined"):
            unknown = ("ans", "class", *SIZES, "confidence", *classes, *of_gender)
            assert {""} == {row[name] for name in unknown}
            continue
        assert "/".join(row[label] for label in SIZES) == row["class"]
        assert row["confidence"] == row[f"p_{row['class']}"]
        assert pytest.approx(1.0, abs=1e-4) == sum(float(row[name]) for name in of_gender)
        male = sum(float(row[name]) for name in row if re.match(r"p_[^=]+/male/", name))
        assert pytest.approx(float(row["p_gender=male"]), abs=1e-4) == male
    assert 1 == sum(row["outcome"].startswith("quarantined") for row in rows)


def test_a_temperature_changes_stated_confidences_and_no_answer_also_through_a_bundle(
    run, tmp_path
):
    paths, store, photos = run
    plain = of_run(paths, store)
    warm = replace(plain, temperatures={"mask": 3.0, "all labels": 2.0})
    tables_of = {}
    for name, ensemble in (("plain", plain), ("warm", warm)):
        out = tmp_path / f"{name}.csv"
        predict_photos(ensemble, photos / "sub", out, with_probabilities=True)
        with out.open() as handle:
            tables_of[name] = list(csv.DictReader(handle))
    for before, after in zip(tables_of["plain"], tables_of["warm"], strict=True):
        for column in ("ImageID", "ans", "votes", "tie", "outcome", "p_gender=male"):
            assert before[column] == after[column]
        power = [float(before[f"p_mask={name}"]) ** (1 / 3) for name in plain.classes["mask"]]
        for name, value in zip(plain.classes["mask"], power, strict=True):
            assert float(after[f"p_mask={name}"]) == pytest.approx(value / sum(power), abs=2e-5)
        assert float(after["confidence"]) < float(before["confidence"])
    selection = json.loads(paths.selection.read_text())
    selection["vote"]["temperatures"] = dict(warm.temperatures)
    original = paths.selection.read_text()
    paths.selection.write_text(json.dumps(selection))
    try:
        assert of_run(paths, store).temperatures == warm.temperatures
        write_bundle(paths, store, tmp_path / "warm")
    finally:
        paths.selection.write_text(original)
    write_bundle(paths, store, tmp_path / "plain")
    with open_bundle(tmp_path / "warm") as opened:
        assert opened.temperatures == warm.temperatures
    with open_bundle(tmp_path / "plain") as opened:
        assert opened.temperatures == {}


def test_photos_come_from_a_folder_a_file_a_list_or_standard_input(run, monkeypatch):
    photos = run[2]
    monkeypatch.chdir(photos)
    lines = b"000.png\n\nsub/001.png\n000.png\n"
    expected = [("000.png", Path("000.png")), ("sub/001.png", Path("sub/001.png"))]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert expected == find_photos(Path("-"))
    assert [("000.png", photos / "000.png")] == find_photos(photos / "000.png")
    assert 100 == len(find_photos(photos))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"000.png\nnobody.png\n")))
    with pytest.raises(UserError, match=r"line 2: a photo .* was required, found nobody\.png"):
        find_photos(Path("-"))


def test_a_list_is_a_file_with_a_path_per_line(run, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{run[2] / '000.png'}\n")
    assert [(str(run[2] / "000.png"), run[2] / "000.png")] == find_photos(listed)
    listed.write_text("")
    with pytest.raises(UserError, match="were required, found none"):
        find_photos(listed)


def test_a_place_that_cannot_be_written_is_refused_before_any_photo_is_answered(
    run, tmp_path, monkeypatch
):
    from orchestrator.ensemble import predict

    monkeypatch.setattr(predict, "answer_fully", lambda *_: pytest.fail("it answered"))
    for out, found in (
        (tmp_path / "nowhere/out.csv", "found no folder .*nowhere"),
        (tmp_path, "found a folder"),
    ):
        with pytest.raises(
            SpecError, match=f"a file in a folder that can be written was required, {found}"
        ):
            predict_photos(None, run[2], out)


def test_photos_are_answered_in_chunks_whose_size_changes_nothing(run, monkeypatch):
    from orchestrator.ensemble import predict

    paths, store, photos = run
    named = [(path.name, path) for path in sorted(photos.rglob("*.*"))]
    whole = answer(of_run(paths, store), named, Reporter(quiet=True))
    sizes, inner = [], predict.probabilities
    monkeypatch.setattr(predict, "chunk_of", lambda size: 32)
    monkeypatch.setattr(
        predict, "probabilities", lambda *job: sizes.append(len(job[1])) or inner(*job)
    )
    assert whole.equals(answer(of_run(paths, store), named, Reporter(quiet=True)))
    assert [32] * 12 + [3] * 4 == sizes, "four checkpoints, 99 readable photos"
    monkeypatch.undo()
    assert (512, 5376) == (predict.chunk_of(380), predict.chunk_of(128))


def test_the_check_of_a_run_sees_a_member_whose_answers_are_not_the_stored_ones(run):
    paths, store, photos = run
    member = of_run(paths, store).members[0]
    named = [(name, str(photos / name)) for name in ("000.png", "002.png")]
    from orchestrator.ensemble.predict import prepare_photos, probabilities

    _, images, _ = prepare_photos(member.prep, [(name, Path(path)) for name, path in named])
    stored = probabilities(member.checkpoints[0], images).tolist()
    prep = member.prep.model_dump_json(by_alias=True)
    folder = str(member.checkpoints[0])
    job = _Job("c-1", store.name, folder, prep, named, stored, TrialShare())
    other = job._replace(folder=str(member.checkpoints[1]))
    broken = [("x", str(photos / "broken.jpg")), *named]
    unread = job._replace(photos=broken, probs=[stored[0], *stored])
    fewer = job._replace(probs=[row[:5] for row in stored])
    equal, unequal, lost, short = compare_answers([job, other, unread, fewer])
    assert equal.largest <= TOLERANCE["cpu"] < unequal.largest
    assert "cannot be read" in lost.why
    assert "were stored" in short.why


def test_every_file_of_a_folder_is_a_photo_or_named_or_litter(tmp_path):
    photos = ("a.JPG", "b.bmp", "c.tif", "d.gif", "e.jfif", "sub/f.webp")
    others = ("IMG_1.ARW", "film.webm", "no extension", "sub/g.avif")
    litter = ("._a.jpg", "__MACOSX/._B.jpg", "__MACOSX/x.jpg", ".cache/y.jpg", "Thumbs.db", "n.txt")
    for name in (*photos, *others, *litter):
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert sorted(photos) == sorted(name for name, _ in find_photos(tmp_path / "p"))
    assert sorted(others) == sorted(other_files(tmp_path / "p"))


def test_the_onnx_files_answer_prepared_photos_where_there_is_no_torch(run, tmp_path):
    paths, store, photos = run
    write_bundle(paths, store, tmp_path / "bundle.zip", with_onnx=True)
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        archive.extractall(tmp_path / "bundle")
    ensemble = of_run(paths, store)
    named = find_photos(photos / "sub")
    prepared = prepare_photos(ensemble.members[0].prep, named)
    for name, image in zip(prepared.ids, prepared.images, strict=True):
        (tmp_path / "crops" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "crops" / name)
    for absent in ("torch", "orchestrator", "trainers", "data_prep", "pyarrow"):
        (tmp_path / f"{absent}.py").write_text("raise ImportError('not on this machine')")
    command = [sys.executable, "bundle/answer.py", "crops", "--out", "answers.csv"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    settings = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, **settings)
    assert 0 == done.returncode, done.stderr
    answers = answer_fully(ensemble, named, Reporter(quiet=True))
    with (tmp_path / "answers.csv").open() as handle:
        rows = {row["ImageID"]: row for row in csv.DictReader(handle)}
    for row, probs in zip(answers.votes.to_pylist(), answers.probabilities, strict=True):
        told = rows[row["ImageID"]]
        assert str(row["pred"]) == told["ans"]
        shares = [float(value) for name, value in told.items() if name.startswith("p_")]
        assert pytest.approx(probs.tolist(), abs=1e-4) == shares
    facts = json.loads((tmp_path / "bundle/onnx.json").read_text())
    assert ["bbbb0000", "aaaa0000"] == [member["setting"] for member in facts["members"]]
    assert {"noise"} == {member["parity"]["photos"] for member in facts["members"]}
    with open_bundle(tmp_path / "bundle.zip") as found:  # `predict` reads it like any other
        assert 2 == len(found.members)
    Image.new("RGB", (20, 20)).save(tmp_path / "crops/small.png")
    done = subprocess.run(command, check=False, **settings)
    assert "a prepared photo of 32 x 32 pixels was required, found 20 x 20" in done.stderr


def test_an_onnx_file_that_answers_otherwise_makes_no_bundle(run, tmp_path, monkeypatch):
    from orchestrator.ensemble import onnx_export

    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"member bbbb0000 \(b\): the ONNX file of bbbb00000 gives"):
        write_bundle(run[0], run[1], tmp_path / "bundle", with_onnx=True)
    assert not list(tmp_path.iterdir())


def test_photos_of_a_folder_agree_where_the_spec_averages_over_groups(run, tmp_path):
    paths, store, photos = run
    plain = of_run(paths, store)
    averaging = replace(plain, group_mean=("gender", "age"))
    with pytest.raises(SpecError, match=r"vote\.group_mean was required"):
        predict_photos(plain, photos, tmp_path / "out.csv", by_folder=True)
    names = [(path.name, path) for path in sorted((photos / "sub").glob("*"))[:4]]
    alone = answer_fully(plain, names, Reporter(quiet=True))
    same = answer_fully(averaging, names, Reporter(quiet=True), list("abcd"))
    np.testing.assert_allclose(alone.probabilities, same.probabilities, rtol=1e-5)
    answers = answer_fully(averaging, names, Reporter(quiet=True), list("aabb"))
    by_label = answers.probabilities.reshape(4, 3, 2, 3).sum(1)
    np.testing.assert_allclose(by_label[[0, 2]], by_label[[1, 3]], rtol=1e-5)
    assert np.abs(answers.probabilities - alone.probabilities).max() > 1e-5
    whole = alone.probabilities.reshape(4, 3, 2, 3).sum(1)
    np.testing.assert_allclose(whole[:2].mean(0), by_label[0], atol=1e-4)


def test_a_bundle_says_what_is_averaged_over_groups(run, tmp_path):
    paths, store, _ = run
    text = paths.resolved.read_text()
    changed = shutil.copytree(store.root, tmp_path / "store")
    copied = RunPaths(changed / "runs" / paths.run_id)
    yaml = YAML(typ="safe").load(text)
    yaml["vote"] = {"group_mean": ["gender"]}
    yaml["data"]["test"] = {"hold_out": 0.5}
    copied.resolved.write_text(json.dumps(yaml))
    write_bundle(copied, Store(changed), tmp_path / "bundle")
    with open_bundle(tmp_path / "bundle") as opened:
        assert ("gender",) == opened.group_mean


def test_a_bundle_with_code_of_its_author_is_refused_without_the_flag(run, tmp_path, monkeypatch):
    monkeypatch.setattr(own_parts, "_allowed", {})
    paths, store, photos = run
    changed = Store(shutil.copytree(store.root, tmp_path / "store"))
    copied = RunPaths(changed.root / "runs" / paths.run_id)
    copied.code.mkdir()
    (copied.code / "mine.py").write_text(
        "from torch import nn\n"
        "def part(n_features, n_classes):\n"
        "    return nn.Linear(n_features, n_classes)\n"
    )
    head = pin({"train": [{"use": "mine.py:part"}]}, [copied.code]).data["train"][0]
    settings = {"backbone": "test_efficientnet", "pretrained": False, "head": head}
    own_parts.allow(copied.code / "mine.py")
    model = Model.model_validate(settings)
    description = {"model": settings, "label_sizes": SIZES, "size": 32, "precision": "fp32", "n_params": 1}  # fmt: skip
    key = "own0"
    with changed.draft("trial", key, params={}, inputs={}) as draft:
        save_weights(draft.path, build(model, SIZES, pretrained=False).state_dict(), description)
    own_parts._allowed.clear()
    trials = tables.read(copied.trials).to_pylist()
    for trial in trials:
        trial["checkpoint"] = f"trial/{key}"
    tables.write(tables.from_rows(trials, tables.trials_schema(SIZES)), copied.trials)

    ensemble = of_run(copied, changed)
    with pytest.raises(UserError, match=r"its models run mine\.py .* give --allow-code"):
        ensemble.allow_code(allowed=False)
    with pytest.raises(UserError, match="give --allow-code"):
        write_bundle(copied, changed, tmp_path / "onnx", with_onnx=True)
    write_bundle(copied, changed, tmp_path / "bundle.zip")
    with open_bundle(tmp_path / "bundle.zip") as opened:
        with pytest.raises(CodeNotAllowed):
            predict_photos(opened, sorted(photos.glob("*.png"))[0], tmp_path / "out.csv")
        with pytest.raises(UserError, match=r"its models run mine\.py"):
            opened.allow_code(allowed=False)
        opened.allow_code(allowed=True)
        name = sorted(photos.glob("*.png"))[0]
        counts = predict_photos(opened, name, tmp_path / "out.csv")
    assert {"answered": 1, "quarantined": 0} == counts
    shutil.unpack_archive(tmp_path / "bundle.zip", tmp_path / "bundle")
    (tmp_path / "bundle/code/mine.py").write_text("import os\n")
    changed_code = open_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"mine\.py: sha256 .* was required by manifest"):
        changed_code.__enter__()
    own_parts._allowed.clear()


def test_an_ensemble_without_code_asks_for_no_flag(run, tmp_path):
    paths, store, _ = run
    of_run(paths, store).allow_code(allowed=False)
    write_bundle(paths, store, tmp_path / "bundle")
    assert not (tmp_path / "bundle/code").exists()
