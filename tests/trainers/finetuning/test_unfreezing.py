import pytest
import torch

from tests.trainers.finetuning.test_optim import BACKBONES, classifier
from trainers.config import Train
from trainers.finetuning.unfreezing import Unfreezing


def unfreezing(model, settings):
    return Unfreezing(Train.model_validate({"unfreeze": settings}).unfreeze, model)


def resting(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_head_trains_first_and_the_whole_backbone_is_in_eval_mode(backbone):
    model = classifier(backbone)
    stages = unfreezing(model, {"name": "head_first", "epochs": 2})
    assert [True, False, True, False] == [stages.enter(epoch) for epoch in (1, 2, 3, 4)]
    assert not resting(model)
    assert stages.enter(1)  # a pure function of the epoch
    assert {f"backbone.{name}" for name, _ in model.backbone.named_parameters()} == resting(model)
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    assert model.head.training
    stages.enter(3)
    model.train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_stages_begin_to_train_from_the_last_to_the_first(backbone):
    model = classifier(backbone)
    stages = unfreezing(model, {"name": "gradual", "every": 2})
    before = None
    n_changes = 0
    for epoch in range(1, 30):
        has_changed = stages.enter(epoch)
        now = resting(model)
        assert has_changed == (now != before if before is not None else True)
        if has_changed:
            n_changes += 1
            assert epoch % 2 == 1
            assert before is None or now < before
        before = now
    assert not before
    assert 3 <= n_changes
    stages.enter(3)
    names = [name for name, _ in model.backbone.named_parameters()]
    assert f"backbone.{names[0]}" in resting(model)
    last = [name for name in names if f"backbone.{name}" not in resting(model)]
    assert names[-1] in last


def test_statistics_of_a_stage_that_rests_stay_and_those_of_the_others_move():
    torch.manual_seed(0)
    model = classifier("test_efficientnet")
    stages = unfreezing(model, "gradual")
    stages.enter(2)
    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    moved = {name for name, value in model.named_buffers() if not torch.equal(before[name], value)}
    assert "backbone.bn1.running_mean" not in moved
    assert "backbone.bn2.running_mean" in moved


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_lower_stages_never_train_and_have_no_backward_pass(backbone):
    model = classifier(backbone)
    stages = unfreezing(model, {"name": "upper", "share": 0.5})
    assert [True, False, False] == [stages.enter(epoch) for epoch in (1, 2, 20)]
    names = [f"backbone.{name}" for name, _ in model.backbone.named_parameters()]
    assert names[0] in resting(model)
    assert names[-1] not in resting(model)
    assert not any(name.startswith("head.") for name in resting(model))
    model.train()
    logits = model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    sum(values.square().sum() for values in logits.values()).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not with_gradient & resting(model)
