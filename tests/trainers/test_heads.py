"""What every head keeps to, whichever is added: the conformance suite, and each one's own formula."""

import pytest
import torch

from trainers.heads import HEADS, joint_log_probs
from trainers.settings.model import Model

SIZES = {"mask": 3, "gender": 2, "age": 3}
SETTINGS = {
    "single": {},
    "shallow": {},
    "deep": {},
    "frozen_deep": {"from": "A"},
}


def head(name, n_features=1792, sizes=SIZES, **settings):
    config = Model.model_validate({"head": {"name": name, **SETTINGS[name], **settings}}).head
    return HEADS[name](config, n_features, sizes)


def test_every_head_is_in_the_suite():
    assert set(HEADS) == set(SETTINGS)


@pytest.mark.parametrize("name", HEADS)
class TestConformance:
    def test_branches_answer_every_label_once_and_in_order(self, name):
        layers = head(name)
        assert list(SIZES) == [label for labels in layers.branches.values() for label in labels]
        assert list(layers.branches) == list(layers.layers)

    def test_probabilities_of_the_joint_class_sum_to_one(self, name):
        layers = head(name, 24).eval()
        joint = layers.log_probs(layers(torch.randn(4, 24))).exp()
        assert (4, 18) == tuple(joint.shape)
        torch.testing.assert_close(torch.ones(4), joint.sum(1))

    def test_in_eval_mode_a_sample_does_not_depend_on_its_batch(self, name):
        layers, x = head(name, 24).eval(), torch.randn(6, 24)
        whole, alone = layers.log_probs(layers(x)), layers.log_probs(layers(x[2:3]))
        torch.testing.assert_close(whole[2:3], alone)

    def test_every_parameter_gets_a_gradient(self, name):
        layers = head(name, 24).train()
        sum(logits.square().sum() for logits in layers(torch.randn(8, 24)).values()).backward()
        assert [] == [key for key, p in layers.named_parameters() if p.grad is None]

    def test_weights_alone_rebuild_it(self, name):
        layers, other = head(name, 24).eval(), head(name, 24).eval()
        other.load_state_dict(layers.state_dict())
        x = torch.randn(3, 24)
        torch.testing.assert_close(layers.log_probs(layers(x)), other.log_probs(other(x)))


F, DEEP = 1792, 512 * 256 + 256 + 2 * 256


@pytest.mark.parametrize(
    ("name", "n_params"),
    [
        ("single", F * 18 + 18),
        ("shallow", F * 8 + 8),
        ("deep", 3 * (F * 512 + 512 + 2 * 512) + 512 * 8 + 8),
        ("frozen_deep", F * 512 + 512 + 3 * DEEP + 256 * 8 + 8),
    ],
)
def test_a_head_on_b4_has_the_parameters_of_its_formula(name, n_params):
    assert n_params == sum(p.numel() for p in head(name).parameters())


def test_one_label_alone_has_its_own_classes():
    assert 3 == head("single", labels=["age"]).layers["joint"].out_features
    assert ("mask", "age") == head("single", labels=["age", "mask"]).branches[
        "joint"
    ]  # as the schema counts


def test_a_deep_branch_has_the_activation_it_is_told():
    assert "GELU" in str(head("deep", activation="gelu").layers["age"])


def test_a_joint_probability_is_the_product_of_its_branches():
    logits = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    joint = joint_log_probs(logits, {"a": ("a",), "b": ("b",)}).exp()
    by_hand = logits["a"].softmax(1)[2, 1] * logits["b"].softmax(1)[2, 0]
    assert by_hand.item() == pytest.approx(joint[2, 1 * 2 + 0].item(), rel=1e-5)


def test_the_joint_class_is_the_best_of_those_that_exist():
    layers = head("shallow", 4, {"kind": 2, "color": 2}, joint="existing")
    layers.exists[:] = torch.tensor(
        [True, False, False, True]
    )  # the best per label, (1, 0), was never seen
    logits = {"kind": torch.tensor([[0.0, 1.0]]), "color": torch.tensor([[0.6, 0.0]])}
    assert 2 == joint_log_probs(logits, layers.branches).argmax(1).item()
    joint = layers.log_probs(logits).exp()
    assert 3 == joint.argmax(1).item()
    assert [0.0, 0.0] == joint[0, 1:3].tolist()
    torch.testing.assert_close(torch.ones(1), joint.sum(1))
