"""`precision: auto` is a rule on the device and the network, so a busy machine changes nothing."""

import pytest
import torch

from trainers.compute_settings import choose_precision, choose_precision_for
from trainers.settings.model import Model

SIZES = {"mask": 3, "gender": 2}


def choice(backbone, device="cpu"):
    model = Model.model_validate({"backbone": backbone, "pretrained": False})
    return choose_precision_for(model, SIZES, size=64, device=device)


@pytest.fixture
def amx(monkeypatch):
    def set_to(is_there):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": is_there})

    return set_to


@pytest.mark.parametrize(
    ("backbone", "precision"),
    [
        ("resnet18", "bf16"),
        ("resnext50_32x4d", "bf16"),  # grouped, not depthwise
        ("vit_tiny_patch16_224", "bf16"),
        ("mobilenetv3_small_050", "fp32"),
        ("tf_efficientnet_lite0", "fp32"),
    ],
)
def test_a_cpu_takes_bf16_with_matrix_units_and_without_depthwise_convolutions(
    amx, backbone, precision
):
    amx(True)
    assert precision == choice(backbone)
    amx(False)
    assert choice(backbone) == "fp32"


@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_a_gpu_takes_bf16_from_compute_capability_8(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision == choose_precision(torch.nn.Linear(2, 2), "cuda:0")
