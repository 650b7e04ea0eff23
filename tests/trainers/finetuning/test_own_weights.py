import pytest
import timm
import torch
from safetensors.torch import save_file

from data_prep.files import file_sha256
from trainers.finetuning.own_weights import shapes_of
from trainers.model import build
from trainers.preflight.backbones import try_backbone
from trainers.settings.model import Model

NAME = "test_efficientnet"


@pytest.fixture
def trained():
    """A network of timm with its classifier, as somebody may have trained it."""
    torch.manual_seed(5)
    return timm.create_model(NAME, num_classes=7)


def built(file, **settings):
    model = Model.model_validate({"backbone": NAME, "weights": str(file), **settings})
    return build(model, {"label": 2})


def first_weight(model):
    return model.state_dict()["conv_stem.weight"]


def test_weights_under_the_names_of_timm_are_loaded_and_their_classifier_is_not(trained, tmp_path):
    file = tmp_path / "face.safetensors"
    save_file(trained.state_dict(), file)
    model = built(file, weights_sha256=file_sha256(file))
    assert torch.equal(first_weight(trained), first_weight(model.backbone))
    assert (2, 256) == tuple(model.head.layers["joint"].weight.shape)
    assert try_backbone(NAME, 64, str(file)) is None


def test_weights_of_a_training_of_ours_fit_too(trained, tmp_path):
    file = tmp_path / "weights.safetensors"
    ours = {f"backbone.{name}": value for name, value in trained.state_dict().items()}
    save_file({**ours, "head.layers.joint.bias": torch.zeros(2)}, file)
    assert torch.equal(first_weight(trained), first_weight(built(file).backbone))
    assert "conv_stem.weight" in shapes_of(file)
    assert "head.layers.joint.bias" not in shapes_of(file)


def test_a_tensor_that_is_missing_or_of_another_shape_is_named_with_both_shapes(trained, tmp_path):
    file = tmp_path / "face.safetensors"
    tensors = dict(trained.state_dict())
    stem = tensors["conv_stem.weight"]
    save_file({**tensors, "conv_stem.weight": stem[:, :1].contiguous()}, file)
    shape = tuple(stem.shape)
    text = f"conv_stem.weight of shape {shape} was required, found {(shape[0], 1, *shape[2:])}"
    for problem in (refusal(file), try_backbone(NAME, 64, str(file))):
        assert text in problem
        assert str(file) in problem
    del tensors["conv_stem.weight"]
    save_file(tensors, file)
    for problem in (refusal(file), try_backbone(NAME, 64, str(file))):
        assert f"1 tensors of the backbone are not in it: conv_stem.weight {shape}" in problem


def refusal(file, **settings):
    with pytest.raises(ValueError, match=r"train\.model\.weights: ") as caught:
        built(file, **settings)
    return str(caught.value)


def test_a_pickle_or_a_changed_file_is_refused(trained, tmp_path):
    file = tmp_path / "face.safetensors"
    torch.save(trained.state_dict(), file)
    assert "weights as safetensors were required" in refusal(file)
    with pytest.raises(ValueError, match="weights as safetensors were required"):
        shapes_of(file)
    save_file(trained.state_dict(), file)
    assert "the file was changed after the spec was read" in refusal(file, weights_sha256="0" * 64)
    with pytest.raises(ValueError, match="should match pattern"):
        built(tmp_path / "face.pth")
    with pytest.raises(ValueError, match="head frozen_deep takes its backbone from variant 'base'"):
        built(file, head={"name": "frozen_deep", "from": "base"})
