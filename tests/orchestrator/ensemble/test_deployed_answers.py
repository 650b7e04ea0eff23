"""Members of every kind answer new photos alike in vote, predict, bundle and beside ONNX files."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from data_prep.prep_config import Prep
from orchestrator.base.console import Reporter
from orchestrator.base.errors import UserError
from orchestrator.ensemble import predict
from orchestrator.ensemble.bundle import open_bundle, write_bundle
from orchestrator.ensemble.members import Ensemble, of_run
from orchestrator.ensemble.onnx_export import write_onnx
from orchestrator.ensemble.predict import answer_fully, prepare_photos
from orchestrator.evaluation.predictions import group_mean_of
from orchestrator.evaluation.vote import vote_table
from orchestrator.stages import test_set as deployed
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.run_dir import RunPaths
from tests.conftest import ROOT
from tests.orchestrator.ensemble.fake_ensemble import SIZES, write_ensemble_run
from trainers import own_parts
from trainers.checkpoint import save_weights
from trainers.config import Train
from trainers.data import Numbers, Task
from trainers.model import build
from trainers.settings.model import Model
from trainers.settings.own_parts import pin
from trainers.training_loop import train

CODE = ROOT / "experiments/own_parts/my_parts.py"
GROUP_MEAN = ["gender", "age"]
BORDERS = (30.0, 60.0)
N_PHOTOS = 16
PLAIN = {"backbone": "test_efficientnet", "pretrained": False}


def own(use, **settings):
    return pin({"train": [{"use": f"my_parts.py:{use}", **settings}]}, [CODE.parent]).data["train"][
        0
    ]


def settings_of(weights):
    """Setting -> the section `train` of its trainings."""
    return {
        "aaaa0000": {
            "model": {
                **PLAIN,
                "weights": str(weights),
                "head": {
                    "name": "shallow",
                    "joint": "existing",
                    "ordered": {"age": {"name": "corn", "decode": "expectation"}},
                },
                "views": {"flip": True, "margins": [0.1]},
            },
            "ema": {"decay": 0.9},
        },
        "bbbb0000": {
            "model": {
                **PLAIN,
                "head": {
                    "name": "deep",
                    "hidden": 8,
                    "ordered": {"age": {"name": "distribution", "cells": 2, "decode": "median"}},
                },
            },
            "soup": {"epochs": 2},
        },
        "cccc0000": {
            "model": {
                "backbone": own("small_network", width=4),
                "head": own("cosine_head"),
                "pretrained": False,
                "views": {"flip": True},
            },
            "loss": own("tempered", temperature=0.5),
            "augment": {"policy": own("gray_patches", side=8)},
        },
    }


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    ages = rng.uniform(10, 80, 40)
    codes = np.stack(
        [rng.integers(0, 3, 40), rng.integers(0, 2, 40), np.digitize(ages, BORDERS)], 1
    )
    images = rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    rows = np.arange(40)
    numbers = {"age": Numbers(ages, BORDERS)}
    names = [f"s{row}" for row in rows]
    return Task(images, codes, names, SIZES, rows[:30], rows[30:], numbers=numbers)


class World(NamedTuple):
    """A run whose members were trained in every way, photos for it, and what the vote answers."""

    paths: RunPaths
    store: Store
    photos: list  # ids and paths
    groups: list
    members: dict  # setting -> the vote's mean probabilities
    ensemble: Ensemble


@pytest.fixture(scope="module")
def world(tmp_path_factory, task):
    root = tmp_path_factory.mktemp("deployed")
    paths, store, folder = write_ensemble_run(root)
    paths.code.mkdir()
    shutil.copyfile(CODE, paths.code / CODE.name)
    own_parts._allowed.clear()
    own_parts.allow(paths.code / CODE.name)
    weights = root / "mine.safetensors"
    backbone = build(Model(**PLAIN), SIZES, pretrained=False).backbone
    save_file({name: value.contiguous() for name, value in backbone.state_dict().items()}, weights)
    trials, adjusted = [], {}
    for number, (setting, settings) in enumerate(settings_of(weights).items()):
        config = Train.model_validate({"duration": "2 epochs", "batch_size": 10, **settings})
        key = f"{setting}trained"
        work = root / key
        work.mkdir()
        train(config, task, seed=number, report=lambda *_: None, work_dir=work, threads=1)
        with store.draft("trial", key, params={}, inputs={}) as draft:
            for name in ("weights.safetensors", "model.json"):
                shutil.copyfile(work / name, draft.path / name)
        trials.append({"trial_id": f"c-{setting}", "setting": setting, "variant": "a", "phase": "confirm", "seed": 0,
                       "fold": 0, "status": "COMPLETE", "params": "{}", "checkpoint": f"trial/{key}"})  # fmt: skip
        adjusted[setting] = [
            {"label": label, "temperature": 0.7 + number, "shift": np.linspace(-1, 1, n).tolist()}
            for label, n in SIZES.items()
        ]
    tables.write(tables.from_rows(trials, tables.trials_schema(SIZES)), paths.trials)
    vote = {"rule": "hard", "adjusted": {"members": adjusted}}
    selection = {"members": list(adjusted), "weights": [1, 2, 1], "vote": vote}
    paths.selection.write_text(json.dumps(selection))
    spec = YAML(typ="safe").load(paths.resolved.read_text())
    spec["vote"] = {"group_mean": GROUP_MEAN}
    spec["data"]["test"] = {"hold_out": 0.5}
    paths.resolved.write_text(json.dumps(spec))
    ensemble = of_run(paths, store)
    photos = [(path.name, path) for path in sorted((folder / "sub").glob("*.png"))[:N_PHOTOS]]
    groups = [f"person{place // 3}" for place in range(N_PHOTOS)]
    members = the_vote_of(store, ensemble, photos, groups, root / "rows", paths.code / CODE.name)
    return World(paths, store, photos, groups, members, ensemble)


def the_vote_of(store, ensemble, photos, groups, rows, code):
    """Do what the stage vote does with checkpoints and rows, without a cluster."""
    prepared = prepare_photos(ensemble.members[0].prep, photos, threads=1)
    rows.mkdir()
    np.save(rows / "rows.npy", prepared.images)
    (rows / "rows.json").write_text(json.dumps(prepared.ids))
    mean = group_mean_of(GROUP_MEAN, SIZES)
    predicted = []
    for member in ensemble.members:
        for checkpoint in member.checkpoints:
            job = deployed.PredictionJob(
                store.name, str(checkpoint), str(rows), "0", [*range(N_PHOTOS)], "cpu", [str(code)]
            )
            probs = mean.over(groups, deployed._predict_checkpoint(job))
            predicted.append(deployed.TrialProbs(SimpleNamespace(setting=member.setting), probs))
    adjustments = {member.setting: member.adjustment for member in ensemble.members}
    return deployed.join_members(predicted, prepared.ids, adjustments)


def the_answer_of(world):
    """The vote's classes and mean probabilities."""
    order = [(name, name) for name, _ in world.photos]
    votes = vote_table(
        order, world.members, quarantined={}, majority=0, rule="hard", weights=[1, 2, 1]
    )
    each = [probs.astype(np.float64) for _, probs in world.members.values()]
    return votes["pred"].to_pylist(), np.average(each, axis=0, weights=[1, 2, 1])


def test_predict_answers_as_the_vote_does(world):
    classes, probs = the_answer_of(world)
    answers = answer_fully(world.ensemble, world.photos, Reporter(quiet=True), world.groups)
    np.testing.assert_allclose(answers.probabilities, probs, atol=1e-6)
    assert answers.votes["pred"].to_pylist() == classes
    alone = answer_fully(world.ensemble, world.photos, Reporter(quiet=True))
    assert np.abs(alone.probabilities - probs).max() > 1e-3


def test_a_bundle_answers_as_the_run_does_without_the_weights_that_training_began_with(
    world, tmp_path
):
    write_bundle(world.paths, world.store, tmp_path / "bundle.zip")
    own_parts._allowed.clear()
    world.paths.root.parents[2].joinpath("mine.safetensors").unlink(missing_ok=True)
    with open_bundle(tmp_path / "bundle.zip") as opened:
        with pytest.raises(UserError, match=r"its models run my_parts\.py .* give --allow-code"):
            opened.allow_code(allowed=False)
        opened.allow_code(allowed=True)
        answers = answer_fully(opened, world.photos, Reporter(quiet=True), world.groups)
    own_parts._allowed.clear()
    own_parts.allow(world.paths.code / CODE.name)
    np.testing.assert_allclose(answers.probabilities, the_answer_of(world)[1], atol=1e-6)


def test_a_bundle_that_has_lost_its_code_says_so(world, tmp_path):
    write_bundle(world.paths, world.store, tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle/code")
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    del manifest["files"][f"code/{CODE.name}"]
    (tmp_path / "bundle/manifest.json").write_text(json.dumps(manifest))
    with (
        open_bundle(tmp_path / "bundle") as opened,
        pytest.raises(
            UserError, match=r"the code of its models was required in .*/code, found none"
        ),
    ):
        opened.allow_code(allowed=True)


def test_onnx_files_and_their_script_answer_as_the_vote_does(world, tmp_path):
    bundle = tmp_path / "bundle"
    write_bundle(world.paths, world.store, bundle, with_onnx=True, allow_code=True)
    prepared = prepare_photos(world.ensemble.members[0].prep, world.photos, threads=1)
    for name, image, group in zip(prepared.ids, prepared.images, world.groups, strict=True):
        (tmp_path / "crops" / group).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "crops" / group / name)
    command = [
        sys.executable,
        bundle / "answer.py",
        tmp_path / "crops",
        "--out",
        tmp_path / "a.csv",
    ]
    environment = {**os.environ, "PYTHONPATH": ""}
    settings = {"env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*command, "--folders-are-groups"], check=True, **settings)
    classes, probs = the_answer_of(world)
    with (tmp_path / "a.csv").open() as handle:
        rows = {os.path.basename(row["ImageID"]): row for row in csv.DictReader(handle)}  # noqa: PTH119
    for (name, _), pred, wanted in zip(world.photos, classes, probs, strict=True):
        shares = [float(value) for key, value in rows[name].items() if key.startswith("p_")]
        assert pytest.approx(wanted.tolist(), abs=2e-4) == shares
        assert str(pred) == rows[name]["ans"]
    assert "" == done.stderr
    done = subprocess.run(command, check=True, **settings)
    assert "each photo is answered alone; the certificate is about the mean of gender, age" in (
        done.stderr
    )


def test_groups_are_averaged_over_photos_that_every_member_can_answer(world, monkeypatch):
    """As in the vote, which knows before it averages what any preparation has lost."""
    inner = predict._prepared
    lost_name = world.photos[1][0]
    strict = Prep.model_validate({"steps": [{"name": "resize", "size": 32}]})

    def prepared(prep, photos, lost, reporter, threads=None):
        if prep == strict:
            lost[lost_name] = "no face"
            photos = [photo for photo in photos if photo[0] != lost_name]
        yield from inner(prep, photos, lost, reporter, threads)

    monkeypatch.setattr(predict, "_prepared", prepared)
    first, second, _ = world.ensemble.members
    mixed = replace(world.ensemble, members=(first, replace(second, prep=strict)))
    kept = [place for place in range(N_PHOTOS) if place != 1]
    photos = [world.photos[place] for place in kept]
    groups = [world.groups[place] for place in kept]
    without = answer_fully(mixed, photos, Reporter(quiet=True), groups)
    answers = answer_fully(mixed, world.photos, Reporter(quiet=True), world.groups)
    np.testing.assert_allclose(answers.probabilities[kept], without.probabilities, atol=1e-6)
    assert np.isnan(answers.probabilities[1]).all()


def test_a_model_that_onnx_has_no_form_for_is_refused_in_a_sentence(world, tmp_path):
    (tmp_path / "odd.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) + torch.linalg.eigvalsh(x.T @ x).sum()\n"
        "def odd(n_features, n_classes):\n"
        "    return Odd(n_features, n_classes)\n"
    )
    own_parts.allow(tmp_path / "odd.py")
    head = pin({"train": [{"use": "odd.py:odd"}]}, [tmp_path]).data["train"][0]
    weights = build(Model(**PLAIN, head=head), SIZES, pretrained=False).state_dict()
    description = {"model": {**PLAIN, "head": head}, "label_sizes": SIZES, "size": 32, "precision": "fp32"}  # fmt: skip
    save_weights(tmp_path, weights, description)
    member = replace(world.ensemble.members[0], checkpoints=(tmp_path,))
    odd = replace(world.ensemble, members=(member,))
    wanted = (
        r"member aaaa0000 \(a\): a model that can be written as ONNX .*found: .*without --onnx$"
    )
    with pytest.raises(UserError, match=wanted):
        write_onnx(odd, tmp_path / "out")
