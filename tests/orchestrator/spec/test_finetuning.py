"""Recipes and files of weights in a spec: only plain settings and contents are identified."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_prep.files import file_sha256
from orchestrator.base.errors import SpecError
from orchestrator.run.driver import dump_yaml
from orchestrator.spec.load import read
from orchestrator.spec.search_space import Search
from trainers.finetuning.recipes import RECIPES

OUTSIDE = (
    "search: {space: {train.optimizer.lr: {float: [1.0, 2.0]}}, "
    "start: [{train.recipe: finetune_2026}]}\n"
)
SPEC = """name: small
data:
  source: {layout: class_folders, root: photos}
  labels: {kind: {from: folder, classes: [a, b]}}
  group: sample_id
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "photos/images/a").mkdir(parents=True)

    def make(text, folder="."):
        path = tmp_path / folder / "spec.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SPEC + text)
        return path

    return make


def settings_of(experiment):
    return {name: experiment.setting(name, {})[0] for name in experiment.arms}


def test_a_recipe_is_its_plain_settings_in_every_identity(write, tmp_path):
    by_name = read(write("train: {recipe: finetune_2026}\n"))
    dump_yaml(by_name.resolved(), tmp_path / "resolved.yaml")
    by_setting = read(tmp_path / "resolved.yaml")
    assert "finetune_2026" not in (tmp_path / "resolved.yaml").read_text()
    assert by_name.identity() == by_setting.identity()
    assert settings_of(by_name) == settings_of(by_setting)
    resolved = by_name.resolved()["train"]
    assert ("adamw", 0.8) == (resolved["optimizer"]["name"], resolved["optimizer"]["layer_decay"])


def test_recipes_are_compared_as_variants_and_overridden_from_the_command_line(write):
    text = (
        "train: {recipe: finetune_2026, duration: 2 epochs}\n"
        "variants:\n"
        "  new: {}\n"
        "  old: {train.recipe: contest_2021, train.duration: 3 epochs}\n"
    )
    experiment = read(write(text), ["train.optimizer.lr=0.01"])
    new, old = (experiment.arms[name].train for name in ("new", "old"))
    assert ("adamw", 0.01, "2 epochs") == (new.optimizer.name, new.optimizer.lr, new.duration)
    assert ("adam", 1e-4, "3 epochs", None) == (
        old.optimizer.name,
        old.optimizer.lr,
        old.duration,
        old.ema,
    )
    assert old.model == new.model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {recipe: best}\n", "required one of contest_2021, finetune_2026; found 'best'"),
        (
            "search: {space: {train.recipe: {choice: [contest_2021, finetune_2026]}}}\n",
            "train.recipe is set in a variant, never in the space; write a variant per recipe",
        ),
        (
            OUTSIDE,
            "no setting of recipe finetune_2026 lies in the space, which has train.optimizer.lr",
        ),
        (
            "search: {start: [{train.recipe: best}]}\n",
            "train.recipe: one of contest_2021, finetune",
        ),
        (
            "train: {model: {weights: face.safetensors}}\n",
            "train.model.weights: a file was required, found none at ",
        ),
        ("train: {model: {weights: face.pth}}\n", "should match pattern|required"),
        (
            "train: {unfreeze: gradual, model: {frozen: {}}}\n",
            "a backbone that trains was required",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_its_line(write, text, message):
    with pytest.raises(SpecError, match=message) as caught:
        read(write(text))
    assert "spec.yaml:6:" in str(caught.value)


def test_a_search_may_begin_with_recipes():
    space = {
        "train.optimizer.name": {"choice": ["adam", "adamw"]},
        "train.optimizer.lr": {"float": [2e-4, 1e-2], "log": True},
        "train.optimizer.layer_decay": {
            "float": [0.6, 1.0],
            "when": {"train.optimizer.name": "adamw"},
        },
        "train.loss": {"choice": ["focal", "cross_entropy"]},
    }
    start = [{"train.recipe": name} for name in ("finetune_2026", "contest_2021")]
    start.append({"train.recipe": "finetune_2026", "train.optimizer.lr": 1e-3})
    search = Search.model_validate({"space": space, "start": start})
    new = RECIPES["finetune_2026"].settings["optimizer"]
    names = ("name", "lr", "layer_decay")
    whole = {f"train.optimizer.{name}": new[name] for name in names}
    assert [
        whole,
        {"train.optimizer.name": "adam"},  # its rate is outside, and it has no layer decay
        {**whole, "train.optimizer.lr": 1e-3},
    ] == search.start


def test_weights_are_known_by_their_content_wherever_they_lie(write, tmp_path):
    files = {}
    for name, value in (("face", 1.0), ("other", 2.0)):
        file = tmp_path / "weights" / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_file({"conv_stem.weight": np.full(3, value)}, file)
        files[name] = file_sha256(file)
    text = (
        "train: {model: {weights: weights/face.safetensors}}\n"
        "variants:\n"
        "  face: {}\n"
        "  other: {train.model.weights: weights/other.safetensors}\n"
        "  imagenet: {train.model.weights: null}\n"
    )
    first = read(write(text))
    known = {name: arm.train.model.weights_sha256 for name, arm in first.arms.items()}
    assert {"face": files["face"], "other": files["other"], "imagenet": None} == known
    assert ["tf_efficientnet_lite0"] == first.backbones()  # of the variant imagenet alone
    dump_yaml(first.resolved(), tmp_path / "resolved.yaml")
    moved = text.replace("weights/", "../weights/")
    (tmp_path / "photos").rename(tmp_path / "photos2")
    (tmp_path / "moved/photos/images/a").mkdir(parents=True)
    (tmp_path / "photos2").rename(tmp_path / "photos")
    for again in (read(tmp_path / "resolved.yaml"), read(write(moved, "moved"))):
        assert first.identity() == again.identity()
        assert settings_of(first) == settings_of(again)
    assert Path(first.arms["face"].train.model.weights).is_absolute()
    save_file({"conv_stem.weight": np.zeros(3)}, tmp_path / "weights/face.safetensors")
    with pytest.raises(SpecError, match="take the right file"):
        read(tmp_path / "resolved.yaml")
    assert settings_of(first)["face"] != settings_of(read(write(text)))["face"]
    (tmp_path / "weights/face.safetensors").unlink()
    assert read(tmp_path / "resolved.yaml", check_roots=False).identity() == first.identity()


def test_a_file_that_is_no_safetensors_is_refused(write, tmp_path):
    (tmp_path / "face.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(SpecError, match="weights as safetensors were required"):
        read(write("train: {model: {weights: face.safetensors}}\n"))


def test_a_start_that_no_variant_can_try_is_refused_by_its_line(write):
    text = (
        "search:\n  space:\n    train.model.head.name: {choice: [single, deep]}\n"
        "    train.model.head.hidden: {int: [8, 64], when: {train.model.head.name: deep}}\n"
        "  start:\n    - {train.model.head.name: %s, train.model.head.hidden: 16}\n"
    )
    path = write(text % "single")
    with pytest.raises(SpecError, match=r"spec\.yaml:11:\d+: search\.start: conditions of"):
        read(path)
    assert read(
        path, check_roots=False
    ).spec.search.start  # what an earlier release ran is readable
    read(write(text % "deep"))


def test_views_are_set_in_a_variant_and_never_searched(write):
    space = "search: {space: {train.model.views: {choice: [null, {flip: true}]}}}\n"
    with pytest.raises(SpecError, match=r"views is set in a variant.* of the photo alone"):
        read(write(space))


@pytest.mark.parametrize(
    ("margins", "found"),
    [
        (
            "0.015",
            r"found 0\.015, which cuts 0 off each side, as the photo itself does; .* by 0\.0312",
        ),
        ("0.1, 0.05, 0.09", r"found 0\.09, which cuts 3 off each side, as 0\.1 does; .* by 0\.125"),
    ],
)
def test_a_margin_that_shows_the_same_part_of_the_photo_again_is_refused_once(
    write, margins, found
):
    path = write(
        f"prep: {{steps: [{{name: resize, size: 32}}]}}\ntrain: {{model: {{views: {{margins: [{margins}]}}}}}}\n"
        "variants: {base: {}, slow: {train.optimizer.lr: 0.001}}\n"
    )
    with pytest.raises(SpecError, match=f"32 x 32 were required, {found}") as refused:
        read(path)
    assert 1 == str(refused.value).count("were required")
    read(path, ["prep.steps=[{name: resize, size: 256}]"])
    assert read(path, check_roots=False).arms, "what an earlier release ran is readable"
