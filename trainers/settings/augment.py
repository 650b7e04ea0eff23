"""What happens to a training sample."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, field_validator

from data_prep.section_base import BARE_NAME, Positive, Probability, Section, check_rule, since
from trainers.library_names import Operation, check_operation
from trainers.settings.own_parts import OwnPart
from trainers.settings.policies import AugMix, Erasing, NamedPolicy, RandAugment, TrivialAugment


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


PolicyName = Literal[
    "none", "basic", "strong", "contest", "rand_augment", "trivial_augment", "aug_mix"
]
_WITH_SETTINGS = ("rand_augment", "trivial_augment", "aug_mix")
_NAMED: TypeAdapter[RandAugment | TrivialAugment | AugMix] = TypeAdapter(NamedPolicy)


def _policy(value: Any) -> Any:
    """Choose by the form, so that a message is about one form and not about all."""
    if isinstance(value, dict):
        is_own = "use" in value
        return OwnPart.model_validate(value) if is_own else _NAMED.validate_python(value)
    if isinstance(value, str):
        if value in _WITH_SETTINGS:
            return _NAMED.validate_python({"name": value})
        known = get_args(PolicyName)
        if value not in known:
            close = difflib.get_close_matches(value, known, n=1, cutoff=0.6)
            near = f"; did you mean {close[0]!r}?" if close else ""
            text = f"required one of {', '.join(known)}, or a list of operations"
            raise ValueError(f"{text}; found {value!r}{near}")
    return value


Policy = Annotated[
    PolicyName | OwnPart | RandAugment | TrivialAugment | AugMix | list[Operation],
    BeforeValidator(_policy),
]


class Augment(Section):
    """What happens to a training sample. Validation and test samples are never augmented."""

    policy: Policy = "basic"
    """`none`, `basic`, `strong`, `contest`, a policy of a paper (`rand_augment`, `trivial_augment`,
    `aug_mix`; as a map it has settings), a list of albumentations' operations, or code of one's
    own: `{use: "my_parts.py:function"}`."""
    erasing: Erasing | None = since(None)
    """A random box of each photo that is painted over after the policy; null for none."""
    cutmix: CutMix = NoCutMix()
    """How parts of two samples are joined."""
    mixup: MixUp = NoMixUp()
    """How two samples are blended."""

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: Policy) -> Policy:
        if isinstance(policy, list):
            for operation in policy:
                check_operation(operation)
        return policy

    @property
    def of_one_photo(self) -> Any:
        """What decides how one photo is changed, as plain data: policy and erasing, and no mixing."""
        facts = self.model_dump(mode="json", include={"policy", "erasing"})
        return facts["policy"] if len(facts) == 1 else facts
