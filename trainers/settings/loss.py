"""What a training minimises."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from data_prep.section_base import BARE_NAME, Fraction, Positive, Section
from trainers.settings.own_parts import OwnOr, OwnPart

Counted = Literal["groups", "photos"]
"""What the size of a class counts: groups, each once and divided among its classes, or photos."""


class _Loss(Section):
    weights: dict[str, Positive] = {}
    """Label -> weight of its branch; labels left out have weight 1."""


class Focal(_Loss):
    """Focal loss, -alpha (1 - p)^gamma log p (Lin et al. 2017, eq. 5).

    `alpha` is one number, or per label one number for each of its classes; a joint class has the
    product of its labels' numbers.
    """

    name: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """How much less an easy sample counts; 0 is cross entropy."""
    alpha: Positive | dict[str, Annotated[list[Positive], Field(min_length=2)]] | None = None
    """Weight of the loss: a number, or per label a number for each class; null for 1."""


class CrossEntropy(_Loss):
    """Cross entropy."""

    name: Literal["cross_entropy"] = "cross_entropy"


class LabelSmoothing(_Loss):
    """Cross entropy against smoothed targets (Szegedy et al. 2016)."""

    name: Literal["label_smoothing"] = "label_smoothing"
    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the target that is spread over all classes."""


class SoftF1(_Loss):
    """One minus the macro F1 of the batch's probabilities."""

    name: Literal["f1"] = "f1"


class LogitAdjustment(_Loss):
    """Cross entropy of logits + tau log(share of the class) (Menon et al. 2021, eq. 10).

    Answers come from the plain logits, so a model learns to answer as if classes were alike.
    """

    name: Literal["logit_adjustment"] = "logit_adjustment"
    tau: Positive = 1.0
    """Strength: 1 answers for the balanced error, less goes part of the way."""
    count: Counted = "groups"
    """What shares of classes count in the training part: each group once, or each photo."""


class BalancedSoftmax(_Loss):
    """Cross entropy of logits + log(size of the class) (Ren et al. 2020, eq. 3).

    With one and the same `count` it is `logit_adjustment` at tau 1.
    """

    name: Literal["balanced_softmax"] = "balanced_softmax"
    count: Counted = "photos"
    """What sizes of classes count in the training part: each photo, as published, or each group."""


PlainLoss = Focal | CrossEntropy | LabelSmoothing | SoftF1 | LogitAdjustment | BalancedSoftmax


class MixedPart(Section):
    """One loss of a mix."""

    weight: Positive
    """What the loss is multiplied by."""
    loss: Annotated[Annotated[PlainLoss, Field(discriminator="name")], BARE_NAME]
    """The loss, with its settings."""

    @model_validator(mode="after")
    def _has_no_branch_weights(self) -> Self:
        if self.loss.weights:
            raise ValueError(
                "weights of branches hold for the whole mix; put them beside the losses, not inside "
                "one"
            )
        return self


class Mix(_Loss):
    """A weighted sum of losses, in short `{f1: 0.4, focal: {weight: 0.6, gamma: 1}}`."""

    name: Literal["mix"] = "mix"
    parts: dict[str, MixedPart]
    """Name of a loss -> its weight, or its weight and its settings."""

    @field_validator("parts", mode="before")
    @classmethod
    def _written_out(cls, parts: Any) -> Any:
        if not isinstance(parts, dict):
            return parts
        return {name: _part(name, value) for name, value in parts.items()}

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if len(self.parts) < 2:
            names = ", ".join(self.parts) or "none"
            raise ValueError(
                f"a mix of two losses or more was required, found {names}; a loss alone is written "
                "as loss: NAME"
            )
        for name, part in self.parts.items():
            if part.loss.name != name:
                raise ValueError(
                    f"parts.{name}: loss {name!r} was required, found {part.loss.name!r}"
                )
        return self


def _part(name: str, value: Any) -> Any:
    """Write out a part: a weight alone, or a weight beside the loss's settings."""
    if isinstance(value, int | float):
        return {"weight": value, "loss": {"name": name}}
    if not isinstance(value, dict) or "loss" in value:
        return value
    settings = {key: setting for key, setting in value.items() if key != "weight"}
    weight = {"weight": value["weight"]} if "weight" in value else {}
    return {**weight, "loss": {"name": name, **settings}}


class _ShortMix:
    """Lets {f1: 0.4, focal: 0.6} stand for {name: mix, parts: ...}, and says so in the JSON Schema."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_named_mix, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        inner = handler(schema["schema"])
        short = {"type": "object", "additionalProperties": {"type": ["number", "object"]}}
        return {"anyOf": [inner, short]}


def _named_mix(value: Any) -> Any:
    if not isinstance(value, dict) or "name" in value or not value.keys() & _MIXABLE:
        return value
    parts = {key: part for key, part in value.items() if key != "weights"}
    weights = {"weights": value["weights"]} if "weights" in value else {}
    return {"name": "mix", "parts": parts, **weights}


_MIXABLE = {
    "focal",
    "cross_entropy",
    "label_smoothing",
    "f1",
    "logit_adjustment",
    "balanced_softmax",
}


class OwnLoss(OwnPart):
    """Code of the user: a loss of each sample, from logits and classes."""

    weights: dict[str, Positive] = {}
    """Label -> weight of its branch; labels left out have weight 1."""


OneLoss = PlainLoss | OwnLoss
_NamedLoss = Annotated[
    Annotated[
        Annotated[PlainLoss | Mix, Field(discriminator="name")],
        BARE_NAME,
    ],
    _ShortMix(),
]
Loss = Annotated[OwnLoss | _NamedLoss, OwnOr(_NamedLoss, OwnLoss)]


def plain_losses(loss: OneLoss | Mix) -> list[OneLoss]:
    """Return the losses that a loss adds up; a plain one is its only part."""
    if isinstance(loss, Mix):
        return [part.loss for part in loss.parts.values()]
    return [loss]


class EffectiveNumber(Section):
    """Weigh a class of n by (1 - beta) / (1 - beta^n) (Cui et al. 2019, eq. 4)."""

    name: Literal["effective_number"] = "effective_number"
    beta: Fraction = 0.999
    """Near 1 a class weighs by 1 / n; the smaller, the more alike classes weigh."""
    count: Counted = "groups"
    """What n counts in the training part: each group once, or each photo."""


def _form_of(balance: Any) -> str:
    return "settings" if isinstance(balance, dict | EffectiveNumber) else "name"


_BalanceName = Literal["none", "weighted_sampler", "class_weights", "effective_number"]
Balance = Annotated[
    Annotated[_BalanceName, Tag("name")] | Annotated[EffectiveNumber, Tag("settings")],
    Discriminator(_form_of),
]
