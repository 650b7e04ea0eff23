"""What a spec may say of a loss: mixes in their short and long form, and what is refused."""

import pytest
from pydantic import ValidationError

from data_prep.section_base import identity
from orchestrator.spec.search_space import apply
from trainers.config import Train


def train(**settings):
    return Train.model_validate(settings)


def test_a_mix_is_written_as_weights_of_named_losses():
    mix = train(loss={"f1": 0.4, "focal": {"weight": 0.6, "gamma": 1.0}}).loss
    assert mix.name == "mix"
    assert [part.weight for part in mix.parts.values()] == [0.4, 0.6]
    assert mix.parts["focal"].loss.gamma == 1.0
    assert mix.weights == {}
    weighed = train(
        loss={"f1": 1, "focal": 2, "weights": {"age": 3}}, model={"head": {"name": "shallow"}}
    )
    assert weighed.loss.weights == {"age": 3}


def test_the_written_out_form_is_the_same_mix():
    short = train(loss={"f1": 0.4, "focal": 0.6})
    assert Train.model_validate(identity(short)) == short
    dumped = {"train": identity(short)}
    moved = apply(dumped, {"train.loss.parts.f1.weight": 0.7})["train"]
    assert Train.model_validate(moved).loss.parts["f1"].weight == 0.7


def test_specs_without_the_new_losses_keep_their_keys():
    assert identity(train())["loss"] == {
        "weights": {},
        "name": "focal",
        "gamma": 2.0,
        "alpha": None,
    }
    assert identity(train())["balance"] == "none"
    assert not train().counts_groups


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"f1": 0.4}}, "two losses or more was required, found f1; a loss alone"),
        ({"loss": {"f1": 0.4, "focal": {"gamma": 1.0}}}, "parts.focal.weight"),
        ({"loss": {"f1": 0.4, "focal": {"weight": 1, "smoothing": 0.1}}}, "smoothing"),
        ({"loss": {"f1": 0.4, "focall": 0.6}}, "focall"),
        (
            {"loss": {"f1": 1, "focal": {"weight": 1, "weights": {"age": 2}}}},
            "put them beside the losses",
        ),
        ({"loss": {"f1": 0.4, "focal": 0.6}, "micro_batch": 8}, "micro_batch 8 is smaller"),
        (
            {"loss": {"f1": 1, "focal": 1}, "balance": "class_weights"},
            "balance class_weights weighs",
        ),
        ({"loss": "f1", "balance": "effective_number"}, "balance effective_number weighs"),
        (
            {"balance": {"name": "effective_number", "beta": 1.0}},
            "^1 validation error.*\n.*\n.*less than 1",
        ),
        ({"balance": "class_weight"}, "^1 validation error.*\n.*\n.*'effective_number'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        train(**settings)


def test_a_mix_without_f1_may_be_split_and_weighed():
    settings = {"focal": 1, "label_smoothing": 1}
    assert train(loss=settings, micro_batch=8, balance="class_weights").can_split_batches


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"loss": "logit_adjustment"}, True),
        ({"loss": {"name": "logit_adjustment", "count": "photos"}}, False),
        ({"loss": "balanced_softmax"}, False),
        ({"loss": {"focal": 1, "logit_adjustment": 1}}, True),
        ({"balance": "effective_number"}, True),
        ({"balance": {"name": "effective_number", "count": "photos"}}, False),
        ({"balance": "class_weights"}, False),
    ],
    ids=str,
)
def test_only_what_counts_groups_needs_them(settings, counts):
    assert train(**settings).counts_groups == counts
