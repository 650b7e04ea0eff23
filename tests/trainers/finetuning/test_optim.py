import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from trainers.config import Train
from trainers.finetuning.optim import layer_scales, lr_at, set_lr, trained_parameters
from trainers.model import build
from trainers.settings.model import Model

BACKBONES = ["test_efficientnet", "test_resnet", "test_vit", "test_convnext2"]


def classifier(backbone, head="single", **settings):
    model = Model.model_validate(
        {"backbone": backbone, "pretrained": False, "head": head, **settings}
    )
    return build(model, {"color": 2, "light": 3}, size=160)


def schedule(settings):
    return Train.model_validate({"schedule": settings}).schedule


@pytest.mark.parametrize("backbone", BACKBONES)
def test_layers_have_the_rates_that_timm_gives_them_below_a_classifier(backbone):
    theirs = timm.create_model(backbone, num_classes=6)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {}
    for group in param_groups_layer_decay(theirs, layer_decay=0.7):
        for parameter in group["params"]:
            expected[f"backbone.{names[id(parameter)]}"] = group["lr_scale"]
    ours = layer_scales(classifier(backbone), 0.7)
    assert ours.keys() <= expected.keys()
    assert ours == pytest.approx({name: expected[name] for name in ours})
    assert 1 > min(ours.values())


def test_norms_and_biases_are_left_out_of_the_decay_as_timm_does():
    model = classifier("test_efficientnet", head="deep")
    config = Train.model_validate(
        {"optimizer": {"name": "adamw", "weight_decay": 0.05, "decay_norms": False}}
    ).optimizer
    ours = {}
    for group in trained_parameters(config, model):
        for parameter in group["params"]:
            ours[id(parameter)] = group["weight_decay"]
    theirs = {}
    for group in param_groups_weight_decay(model, 0.05):
        for parameter in group["params"]:
            theirs[id(parameter)] = group["weight_decay"]
    assert theirs == ours
    assert {0.0, 0.05} == set(ours.values())


def test_each_group_gets_its_part_of_the_rate_and_one_rate_needs_no_groups():
    model = classifier("test_efficientnet")
    plain = Train().optimizer
    assert all(isinstance(p, torch.nn.Parameter) for p in trained_parameters(plain, model))
    config = Train.model_validate({"optimizer": {"name": "adamw", "layer_decay": 0.5}}).optimizer
    optimizer = torch.optim.SGD(trained_parameters(config, model), lr=1.0)
    set_lr(optimizer, 0.1)
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"]
    assert 0.1 == rates[id(model.head.layers["joint"].weight)]
    assert 0.1 / 2**3 >= rates[id(model.backbone.conv_stem.weight)] > 0


@pytest.mark.parametrize("n_steps", [2, 3, 10, 57])
def test_one_cycle_is_that_of_torch(n_steps):
    config = schedule("one_cycle")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=n_steps, cycle_momentum=False
    )
    for step in range(n_steps):
        ours = lr_at(config, 0.3, step=step, steps_per_epoch=5, n_steps=n_steps, cuts=0)
        assert torchs.get_last_lr()[0] == pytest.approx(ours, rel=1e-9)
        optimizer.step()
        if step < n_steps - 1:
            torchs.step()


@pytest.mark.parametrize("name", ["reduce_on_plateau", "cosine", "step", "none"])
def test_every_schedule_may_begin_with_a_linear_warm_up(name):
    def rates(settings, steps):
        config = schedule(settings)
        return [
            lr_at(config, 1.0, step=step, steps_per_epoch=10, n_steps=40, cuts=0) for step in steps
        ]

    warmed = {"name": name, "warmup": "4 steps"}
    assert [0.25, 0.5, 0.75, 1.0, 1.0] == pytest.approx(rates(warmed, range(5)))
    if name != "cosine":  # its half cosine takes what the warm-up leaves
        assert rates({"name": name}, range(4, 40)) == rates(warmed, range(4, 40))


def test_what_makes_no_sense_on_a_frozen_backbone_is_refused_at_once():
    for frozen in ({"frozen": {}}, {"head": {"name": "frozen_deep", "from": "base"}}):
        with pytest.raises(
            ValueError, match="layer_decay and unfreeze: a backbone that trains was"
        ):
            Train.model_validate(
                {
                    "model": frozen,
                    "optimizer": {"name": "adamw", "layer_decay": 0.9},
                    "unfreeze": "head_first",
                }
            )
    for unfreeze in ({"name": "head_first", "epochs": 10}, {"name": "gradual", "every": 10}):
        with pytest.raises(ValueError, match="more than 10 epochs of training were required"):
            Train.model_validate({"unfreeze": unfreeze, "duration": "10 epochs"})
