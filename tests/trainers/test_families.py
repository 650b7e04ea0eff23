"""Every named backbone family carries every head. Built without memory (the meta device): shapes are what counts."""

import pytest
import torch

from trainers.heads import HEADS
from trainers.model import build
from trainers.settings.model import Model

SIZES = {"mask": 3, "gender": 2, "age": 3}
FEATURES = {
    "resnet18": 512,
    "resnet50": 2048,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "efficientnet_b1": 1280,
    "efficientnet_b2": 1408,
    "efficientnet_b3": 1536,
    "efficientnet_b4": 1792,
    "efficientnet_b5": 2048,
    "efficientnet_b6": 2304,
    "efficientnet_b7": 2560,
    "tf_efficientnet_lite0": 1280,
    "tf_efficientnet_lite4": 1280,
    "mobilenetv3_small_050": 1024,
    "convnext_tiny": 768,
    "vit_tiny_patch16_224": 192,
    "swin_tiny_patch4_window7_224": 768,
}


@pytest.mark.parametrize("backbone", FEATURES)
def test_a_family_builds_with_every_head(backbone):
    for name in HEADS:
        head = {"name": name, "from": "A"} if name == "frozen_deep" else name
        config = Model.model_validate({"backbone": backbone, "pretrained": False, "head": head})
        with torch.device("meta"):
            model = build(config, SIZES, size=64)
        if name == "single":  # the backbone is the same below the others
            assert (2, FEATURES[backbone]) == tuple(
                model.features(torch.zeros(2, 3, 64, 64, device="meta")).shape
            )
        logits = model.head(torch.zeros(2, FEATURES[backbone], device="meta"))
        assert 18 == model.head.log_probs(logits).shape[1]


def test_a_transformer_is_built_for_the_size_of_the_photos():
    config = Model.model_validate({"backbone": "vit_tiny_patch16_224", "pretrained": False})
    assert (1, 18) == tuple(build(config, SIZES, size=32)(torch.zeros(1, 3, 32, 32))["joint"].shape)


def test_photos_are_normalized_inside_the_model():
    model = build(Model(backbone="test_efficientnet", pretrained=False), SIZES)
    config = model.backbone.pretrained_cfg
    photo = torch.randint(0, 255, (2, 4, 5, 3), dtype=torch.uint8)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    wanted = ((photo / 255.0 - mean) / std).permute(0, 3, 1, 2)
    for x in (photo.permute(0, 3, 1, 2), photo.permute(0, 3, 1, 2).float().contiguous()):
        torch.testing.assert_close(wanted, model._normalized(x), rtol=1e-4, atol=1e-5)
    assert model._normalized(photo.permute(0, 3, 1, 2)).is_contiguous(
        memory_format=torch.channels_last
    )
