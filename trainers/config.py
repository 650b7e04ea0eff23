"""The `train` section of a spec: everything that decides one training. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.section_base import Count, Positive, Section, how, since
from trainers.finetuning.recipes import RecipeName, with_recipe
from trainers.settings.augment import Augment, NoCutMix, NoMixUp, OfflineMixUp
from trainers.settings.duration import Duration, DurationText
from trainers.settings.finetuning import Ema, Gradual, HeadFirst, Soup, Unfreeze
from trainers.settings.loss import Balance, EffectiveNumber, Focal, Loss, SoftF1, plain_losses
from trainers.settings.model import Distribution, Model
from trainers.settings.optimization import Adam, Optimizer, ReduceOnPlateau, Schedule

IS_LAST = "is_last"
"""What the last report of a training has beside its metrics, as 1.0."""


class Train(Section):
    """One training, from ImageNet weights to the best epoch."""

    recipe: RecipeName | None = how(None, exclude_if=lambda _: True)
    """A named set of settings, which others of this section override. It stands for plain settings:
    those are what resolved.yaml shows and what keys are made of. docs/experiments.md says what each
    was measured to be worth."""
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
    balance: Balance = "none"
    """Against rare classes: draw them more often, weigh their loss by 1 / size, or by their effective
    number; `none` for neither.
    """
    group_photos: Count | None = since(None)
    """Photos of each group in an epoch, drawn anew for every epoch; null takes all of them."""
    duration: DurationText = "10 epochs"
    """Length of a training: `10 epochs` or `500 steps`."""
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    """Samples per optimizer step."""
    micro_batch: Annotated[int, Field(ge=2, le=65536)] | None = None
    """Photos in the model at once; gradients add up to a batch. BatchNorm sees the micro-batch."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient of all parameters (Pascanu et al. 2013)."""
    unfreeze: Unfreeze | None = since(None)
    """What trains from which epoch on: the head alone at first; null trains everything from the start."""
    ema: Ema | None = since(None)
    """Score and save a moving average of the weights; null for the weights themselves."""
    soup: Soup | None = since(None)
    """Save the mean of the weights of good epochs; null for the weights of the best one."""
    early_stop: Count | None = None
    """Number of epochs without a better val macro F1 after which a training ends."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Number format of the network; `auto` chooses what the device does fast."""
    compile: Literal["off", "on", "auto"] = since("off")
    """Let torch compile the training steps; `auto` does on a GPU where timed steps say that it repays.
    `off` leaves them as they are; a GPU then replays them as CUDA graphs, with the same results."""

    @model_validator(mode="before")
    @classmethod
    def _recipe_is_plain_settings(cls, data: Any) -> Any:
        return with_recipe(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _finetuning_needs_a_backbone_that_trains(self) -> Self:
        settings = []
        if self.optimizer.layer_decay < 1:
            settings.append("optimizer.layer_decay")
        if self.unfreeze is not None:
            settings.append("unfreeze")
        if settings and self.model.freeze is not None:
            raise ValueError(
                f"{' and '.join(settings)}: a backbone that trains was required, found a frozen one "
                f"(model.frozen, or head frozen_deep); remove {' and '.join(settings)}, or train it"
            )
        return self

    @model_validator(mode="after")
    def _more_than_the_head_trains(self) -> Self:
        n_epochs = 0
        if isinstance(self.unfreeze, HeadFirst):
            n_epochs = self.unfreeze.epochs
        if isinstance(self.unfreeze, Gradual):
            n_epochs = self.unfreeze.every
        duration = Duration.parse(self.duration)
        if duration.unit == "epochs" and n_epochs >= duration.n:
            raise ValueError(
                f"unfreeze: more than {n_epochs} epochs of training were required, because the head "
                f"trains alone for so many; found duration {self.duration!r}; lengthen it, or use "
                "model.frozen, which keeps the features"
            )
        return self

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
        weighs = self.balance == "class_weights" or self.effective_number is not None
        if weighs and not self.can_split_batches:
            name = "class_weights" if self.effective_number is None else "effective_number"
            raise ValueError(
                f"balance {name} weighs the loss of each sample; loss 'f1' has none and "
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
        return not any(isinstance(loss, SoftF1) for loss in plain_losses(self.loss))

    @property
    def effective_number(self) -> EffectiveNumber | None:
        """How classes are weighed by their effective number; None where they are not."""
        if self.balance == "effective_number":
            return EffectiveNumber()
        return self.balance if isinstance(self.balance, EffectiveNumber) else None

    @property
    def numbered_labels(self) -> list[str]:
        """The labels whose numbers are learned, and not only their classes."""
        ordered = getattr(self.model.head, "ordered", {})
        return [name for name, kind in ordered.items() if isinstance(kind, Distribution)]

    @property
    def counts_groups(self) -> bool:
        """Return True if classes are counted, or photos drawn, by group."""
        counts = [getattr(loss, "count", None) for loss in plain_losses(self.loss)]
        if self.effective_number is not None:
            counts.append(self.effective_number.count)
        return "groups" in counts or self.group_photos is not None


def remarks(train: Train) -> list[str]:
    """Return findings on settings that are allowed and rarely useful, each with its reason."""
    findings = []
    augment = train.augment
    cuts = not isinstance(augment.cutmix, NoCutMix)
    blends = not isinstance(augment.mixup, NoMixUp)
    changes = augment.policy not in ("none", []) or augment.erasing is not None
    if isinstance(augment.mixup, OfflineMixUp) and (cuts or changes):
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
