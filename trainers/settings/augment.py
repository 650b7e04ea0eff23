"""What happens to a training sample."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from data_prep.section_base import BARE_NAME, Positive, Probability, Section, check_rule
from trainers.library_names import Operation, check_operation


class NoCutMix(Section):
    """No CutMix."""

    name: Literal["none"] = "none"


class RandomCutMix(Section):
    """A random box of another sample (Yun et al. 2019); lambda ~ Beta(alpha, alpha)."""

    name: Literal["random"] = "random"
    p: Probability = 0.5
    """Probability that a batch is mixed."""
    alpha: Positive = 1.0
    """Both parameters of the Beta distribution of lambda."""


class HalfCutMix(Section):
    """The right half of another sample, targets half and half."""

    name: Literal["half"] = "half"
    p: Probability = 0.5
    """Probability that a batch is mixed."""


CutMix = Annotated[
    Annotated[NoCutMix | RandomCutMix | HalfCutMix, Field(discriminator="name")], BARE_NAME
]


class NoMixUp(Section):
    """No MixUp."""

    name: Literal["none"] = "none"


Rule = dict[str, Any]
"""As in `data.exclude`: column -> [low, high], values, a value, or {not: value}; all must fit."""


class _MixUp(Section):
    only: Rule = {}
    """Rules about columns; only samples that fit all of them are mixed."""

    @field_validator("only")
    @classmethod
    def _rule(cls, only: Rule) -> Rule:
        for column, rule in only.items():
            check_rule(f"only.{column}", rule)
        return only


class OnlineMixUp(_MixUp):
    """Convex combinations of a batch with its permutation (Zhang et al. 2018).

    Lambda ~ Beta(alpha, alpha). With `only`, the samples that fit the rule are mixed among
    themselves.
    """

    name: Literal["online"] = "online"
    alpha: Positive = 0.2
    """Both parameters of the Beta distribution of lambda."""


class OfflineMixUp(_MixUp):
    """Extra training samples after the split, each half one photo and half one of another group.

    Both parents fit `only` and are equal in every column of `within`. `ratio` is the number of
    extra samples per sample that fits.
    """

    name: Literal["offline"] = "offline"
    within: list[str] = []
    """Columns in which both parents are equal."""
    ratio: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Extra samples per sample that fits."""


MixUp = Annotated[
    Annotated[NoMixUp | OnlineMixUp | OfflineMixUp, Field(discriminator="name")], BARE_NAME
]


class Augment(Section):
    """What happens to a training sample. Validation and test samples are never augmented."""

    policy: Literal["none", "basic", "strong", "contest"] | list[Operation] = "basic"
    """`none`, `basic`, `strong`, `contest`, or a list of albumentations' operations."""
    cutmix: CutMix = NoCutMix()
    """How parts of two samples are joined."""
    mixup: MixUp = NoMixUp()
    """How two samples are blended."""

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str | list[Operation]) -> str | list[Operation]:
        if isinstance(policy, list):
            for operation in policy:
                check_operation(operation)
        return policy
