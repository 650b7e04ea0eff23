"""Pretrained backbones that are no registry's: found locally, recorded, verified, never downloaded by a worker."""

import json

import pytest
import torch
from safetensors.torch import save_file

from data_prep.weights import cache as weights
from data_prep.weights import hub
from data_prep.weights.registry import WeightsError
from orchestrator.base.errors import UserError
from orchestrator.planning import stage_keys
from orchestrator.run.prerequisites import require_weights
from orchestrator.spec.load import read
from trainers.model import WeightsUnavailable, build
from trainers.settings.model import Model

BACKBONE = "test_efficientnet"
MODEL = Model.model_validate({"backbone": BACKBONE})
SPEC = """
name: x
data:
  source: {layout: class_folders, root: data}
  labels: {kind: {from: folder, classes: [a, b]}}
  group: folder
train: {model: {pretrained: false}}
variants:
  base: {}
  deep: {train: {model: {backbone: test_resnet, pretrained: true}}}
search:
  trials: 2
  variant_spaces:
    base: {train.model.pretrained: {choice: [true, false]}, train.model.backbone: {choice: [test_efficientnet, test_vit]}}
"""


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with empty caches, whose hub must not be asked."""
    import huggingface_hub
    import timm.models._hub

    def refuse(*asked, **settings):
        raise AssertionError(f"the hub was asked for {asked}")

    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", refuse)
    return tmp_path


def arrive(machine, revision):
    """Put random weights into the hub's cache as a download of `main` would; return one of their tensors."""
    import timm

    torch.manual_seed(revision)
    state = timm.create_model(BACKBONE).state_dict()
    home = (
        machine
        / "hub"
        / f"models--{timm.get_pretrained_cfg(BACKBONE).hf_hub_id.replace('/', '--')}"
    )
    (home / "snapshots" / str(revision)).mkdir(parents=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs/main").write_text(str(revision))
    save_file(state, home / "snapshots" / str(revision) / "model.safetensors")
    return state["conv_stem.weight"]


def stem(model):
    return model.backbone.state_dict()["conv_stem.weight"]


def test_what_came_first_is_recorded_and_used_whatever_the_hub_gives_later(machine):
    first = arrive(machine, 1)
    assert torch.equal(first, stem(build(MODEL, {"kind": 2})))
    assert {BACKBONE} == set(json.loads((machine / "cache" / weights.RECORD).read_text()))
    arrive(machine, 2)
    assert torch.equal(first, stem(build(MODEL, {"kind": 2})))
    path = hub.require(BACKBONE)
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(
        WeightsUnavailable, match=r"test_efficientnet\.safetensors: sha256 .* was required"
    ):
        build(MODEL, {"kind": 2})
    path.unlink()
    with pytest.raises(WeightsError, match=r"sha256 .* was recorded for test_efficientnet, found"):
        hub.require(BACKBONE)


def test_a_file_put_there_by_hand_is_taken_and_without_one_the_sentence_says_where(machine):
    with pytest.raises(
        WeightsUnavailable,
        match=rf"found none; put it at {machine}/cache/test_efficientnet\.safetensors",
    ):
        build(MODEL, {"kind": 2})
    arrive(machine, 1)
    (machine / "cache").mkdir(exist_ok=True)
    (machine / "hub").rename(machine / "elsewhere")
    (file,) = (machine / "elsewhere").rglob("*.safetensors")
    file.rename(machine / "cache/test_efficientnet.safetensors")
    assert hub.require(BACKBONE) == machine / "cache/test_efficientnet.safetensors"


def test_a_submit_asks_for_the_backbones_of_variants_and_of_the_space_before_any_work(machine):
    (machine / "spec.yaml").write_text(SPEC)
    experiment = read(machine / "spec.yaml", check_roots=False)
    assert ["test_efficientnet", "test_resnet", "test_vit"] == experiment.backbones()
    with pytest.raises(UserError, match="weights test_efficientnet: a file was required"):
        require_weights(experiment, allow_download=False)
    arrive(machine, 1)
    with pytest.raises(UserError, match="weights test_resnet: a file was required"):
        require_weights(experiment, allow_download=False)
    with pytest.raises(
        UserError,
        match=r"weights test_resnet: the hub did not give them \(AssertionError: the hub was",
    ):
        require_weights(experiment, allow_download=True)


def test_the_recorded_hash_is_part_of_what_a_search_is_known_by(machine):
    (machine / "spec.yaml").write_text(SPEC)
    experiment = read(machine / "spec.yaml", check_roots=False)
    prepared = stage_keys.prepare_keys(experiment, "photos")

    class Catalog:
        result = {"content": "c", "photos": "p"}

    before = (
        stage_keys.search_key(experiment, "content", prepared),
        stage_keys.study_families(experiment, "content", prepared)["base"],
    )
    arrive(machine, 1)
    hub.require(BACKBONE)
    assert before[0] != stage_keys.search_key(experiment, "content", prepared)
    assert before[1] != stage_keys.study_families(experiment, "content", prepared)["base"]


def put(machine, name, state):
    (machine / "cache").mkdir(exist_ok=True)
    save_file(state, machine / "cache" / f"{name}.safetensors")


def test_weights_of_another_backbone_are_refused_with_the_names_and_never_recorded(machine):
    import timm

    put(machine, BACKBONE, timm.create_model("test_vit").state_dict())
    with pytest.raises(WeightsError, match=r"does not fit the backbone: .*conv_stem\.weight"):
        hub.require(BACKBONE)
    assert not (machine / "cache" / weights.RECORD).exists()
    with pytest.raises(WeightsUnavailable, match="does not fit"):
        build(MODEL, {"kind": 2})


def test_a_file_that_lacks_a_tensor_or_has_another_shape_is_refused(machine):
    import timm

    state = timm.create_model(BACKBONE).state_dict()
    names = [name for name in state if name.startswith("blocks.1.")]
    put(machine, BACKBONE, {name: value for name, value in state.items() if name not in names[:2]})
    with pytest.raises(
        WeightsError, match=rf"2 of \d+ tensors are not in it: {names[0]}; {names[1]}\."
    ):
        hub.require(BACKBONE)
    put(machine, BACKBONE, state | {"conv_stem.weight": torch.zeros(3, 3, 3, 3)})
    with pytest.raises(WeightsError, match=r"size mismatch for conv_stem\.weight"):
        hub.require(BACKBONE)
    put(
        machine,
        BACKBONE,
        {name: value for name, value in state.items() if "classifier" not in name},
    )
    assert hub.require(BACKBONE).is_file()
