"""The `train` section of a spec: everything that decides one training. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from data_prep.section_base import (
    BARE_NAME,
    Count,
    Fraction,
    Positive,
    Probability,
    Section,
    check_rule,
    since,
)
from trainers.library_names import Operation, check_operation

IS_LAST = "is_last"
"""What the last report of a training has beside its metrics, as 1.0."""
_DURATION = r"^[1-9][0-9]* (epochs?|steps?)$"
DurationText = Annotated[str, StringConstraints(pattern=_DURATION)]


@dataclass(frozen=True)
class Duration:
    """A length of training, in epochs or in steps."""

    n: int
    unit: Literal["epochs", "steps"]

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read '10 epochs' or '500 steps'."""
        if not re.match(_DURATION, text):
            raise ValueError(
                f"a duration must read like '10 epochs' or '500 steps', found {text!r}"
            )
        number, unit = text.split()
        return cls(int(number), "epochs" if unit.startswith("epoch") else "steps")

    def steps(self, steps_per_epoch: int) -> int:
        """Convert to optimizer updates."""
        return self.n * steps_per_epoch if self.unit == "epochs" else self.n

    def epochs(self, steps_per_epoch: int) -> int:
        """Convert to epochs, rounded up: an epoch that has begun is evaluated too."""
        return self.n if self.unit == "epochs" else -(-self.n // steps_per_epoch)


class SingleHead(Section):
    """Model A: one linear layer over the joint classes, or over some labels (`labels: [age]`)."""

    name: Literal["single"] = "single"
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    """The labels that the head answers; null for the joint class of all."""


Width = Annotated[int, Field(ge=1, le=8192)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "leaky_relu", "gelu", "silu"]


class _Branches(Section):
    joint: Literal["free", "existing"] = "free"
    """The joint classes: any combination of labels, or only those that the training part has."""


class ShallowHead(_Branches):
    """Model B: one linear layer per label."""

    name: Literal["shallow"] = "shallow"


class DeepHead(_Branches):
    """Model C: per label, features -> hidden, BatchNorm, activation, Dropout -> classes."""

    name: Literal["deep"] = "deep"
    hidden: Width = 512
    """Width of the hidden layer of each branch."""
    activation: Activation = "relu"
    """Activation of the hidden layer."""
    dropout: Dropout = 0.5
    """Share of the hidden values that are dropped in training."""


class FrozenDeepHead(_Branches):
    """Model A+C: the frozen feature map of a trained variant, a projection, then deep branches."""

    name: Literal["frozen_deep"] = "frozen_deep"
    source: str = Field(alias="from")
    """The variant whose trained feature map is kept."""
    projection: Width = 512
    """Width of the projection that all branches share."""
    hidden: Width = 256
    """Width of the hidden layer of each branch."""
    activation: Activation = "relu"
    """Activation of the hidden layer."""
    dropout: Dropout = 0.5
    """Share of the hidden values that are dropped in training."""


Head = Annotated[
    Annotated[SingleHead | ShallowHead | DeepHead | FrozenDeepHead, Field(discriminator="name")],
    BARE_NAME,
]


class Frozen(Section):
    """The backbone stays as it is, in eval mode; features are computed once per photo and view."""

    views: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of augmented versions of a training photo; epoch e sees version (e - 1) mod views."""


class Model(Section):
    """A timm backbone and a head."""

    backbone: str = "tf_efficientnet_lite0"
    """Name of a model of timm."""
    pretrained: bool = True
    """Begin with ImageNet weights; false begins with random ones."""
    head: Head = SingleHead()
    """What turns features into classes."""
    frozen: Frozen | None = None
    """Leave the backbone as it is and keep its features; null trains all of it."""

    @property
    def freeze(self) -> Frozen | None:
        """How the backbone is frozen; head frozen_deep always freezes it."""
        return self.frozen or (Frozen() if isinstance(self.head, FrozenDeepHead) else None)


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


Loss = Annotated[
    Annotated[Focal | CrossEntropy | LabelSmoothing | SoftF1, Field(discriminator="name")],
    BARE_NAME,
]


class _Optimizer(Section):
    lr: Annotated[float, Field(gt=0, le=1e6)] = 1e-4
    """Learning rate at the start."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Strength of the weight decay."""


class Adam(_Optimizer):
    """Adam with L2 regularisation."""

    name: Literal["adam"] = "adam"


class AdamW(_Optimizer):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"


class SGD(_Optimizer):
    """Stochastic gradient descent with Nesterov momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum."""


Optimizer = Annotated[Annotated[Adam | AdamW | SGD, Field(discriminator="name")], BARE_NAME]


class ReduceOnPlateau(Section):
    """Multiply the learning rate by `factor` after `patience` epochs without a better val score."""

    name: Literal["reduce_on_plateau"] = "reduce_on_plateau"
    patience: Annotated[int, Field(ge=0)] = 5
    """Epochs without a better val score before a reduction."""
    factor: Fraction = 0.1
    """What the learning rate is multiplied by."""


class Cosine(Section):
    """Linear warm-up, then half a cosine to zero, per step."""

    name: Literal["cosine"] = "cosine"
    warmup: DurationText | None = None
    """Length of the linear warm-up, such as `1 epochs`; null for none."""


class StepDecay(Section):
    """Multiply the learning rate by `factor` every `every` epochs."""

    name: Literal["step"] = "step"
    every: Count = 10
    """Epochs between two reductions."""
    factor: Fraction = 0.1
    """What the learning rate is multiplied by."""


class Constant(Section):
    """A constant learning rate."""

    name: Literal["none"] = "none"


Schedule = Annotated[
    Annotated[ReduceOnPlateau | Cosine | StepDecay | Constant, Field(discriminator="name")],
    BARE_NAME,
]


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


class Train(Section):
    """One training, from ImageNet weights to the best epoch."""

    model: Model = Model()
    """Backbone and head."""
    loss: Loss = Focal()
    """What is minimised."""
    optimizer: Optimizer = Adam()
    """How weights are updated."""
    schedule: Schedule = ReduceOnPlateau()
    """How the learning rate changes."""
    augment: Augment = Augment()
    """What happens to training samples."""
    balance: Literal["none", "weighted_sampler", "class_weights"] = "none"
    """Against rare classes: draw them more often, or weigh their loss; `none` for neither."""
    duration: DurationText = "10 epochs"
    """Length of a training: `10 epochs` or `500 steps`."""
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    """Samples per optimizer step."""
    micro_batch: Annotated[int, Field(ge=2, le=65536)] | None = None
    """Photos in the model at once; gradients add up to a batch. BatchNorm sees the micro-batch."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient of all parameters (Pascanu et al. 2013)."""
    early_stop: Count | None = None
    """Number of epochs without a better val macro F1 after which a training ends."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Number format of the network; `auto` chooses what the device does fast."""
    compile: Literal["off", "on", "auto"] = since("off")
    """Let torch compile the training steps; `auto` does on a GPU where timed steps say that it repays.
    `off` leaves them as they are; a GPU then replays them as CUDA graphs, with the same results."""

    @model_validator(mode="after")
    def _weights_need_branches(self) -> Self:
        if self.loss.weights and self.model.head.name == "single":
            raise ValueError(
                "loss.weights weighs the branches of a head; head 'single' has none; remove "
                "loss.weights or use head 'shallow', 'deep' or 'frozen_deep'"
            )
        return self

    @model_validator(mode="after")
    def _class_weights_need_samples(self) -> Self:
        if self.balance == "class_weights" and isinstance(self.loss, SoftF1):
            raise ValueError(
                "balance class_weights weighs the loss of each sample; loss 'f1' has none and "
                "counts every class alike; set balance: none or weighted_sampler, or use loss "
                "'focal', 'cross_entropy' or 'label_smoothing'"
            )
        return self

    @model_validator(mode="after")
    def _f1_needs_the_whole_batch(self) -> Self:
        if not self.can_split_batches and self.micro_batch and self.micro_batch < self.batch_size:
            raise ValueError(
                "loss 'f1' counts over a whole batch, so its gradient is not the sum over "
                f"micro-batches; micro_batch {self.micro_batch} is smaller than batch_size "
                f"{self.batch_size}; remove micro_batch, set batch_size: {self.micro_batch}, or "
                "use loss 'focal', 'cross_entropy' or 'label_smoothing'"
            )
        return self

    @property
    def photos_at_once(self) -> int:
        """How many photos are in the model at once, as far as the spec says."""
        return min(self.batch_size, self.micro_batch or self.batch_size)

    @property
    def can_split_batches(self) -> bool:
        """Return True if micro-batches add up to the gradient of the whole batch."""
        return not isinstance(self.loss, SoftF1)


def remarks(train: Train) -> list[str]:
    """Return findings on settings that are allowed and rarely useful, each with its reason."""
    findings = []
    augment = train.augment
    cuts = not isinstance(augment.cutmix, NoCutMix)
    blends = not isinstance(augment.mixup, NoMixUp)
    if isinstance(augment.mixup, OfflineMixUp) and (cuts or augment.policy not in ("none", [])):
        findings.append(
            "offline mixup is combined with other augmentation; a blend of two people that is cut "
            "or bent again resembles neither, and the effect of the extra samples cannot be told "
            "from the rest; set train.augment.policy: none and cutmix: none"
        )
    if train.model.freeze and (cuts or blends):
        findings.append(
            "a frozen backbone's features cannot be kept where photos are mixed: "
            "every epoch computes them again"
        )
    return findings
