"""Augmentation policies of papers, by name, and what is erased after any policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from data_prep.section_base import Positive, Probability, Section

Level = Annotated[int, Field(ge=0, le=255)]


class _Named(Section):
    flip: Probability = 0.5
    """Probability that a photo is mirrored first; the papers do so on photos of things."""
    fill: Annotated[list[Level], Field(min_length=3, max_length=3)] = [0, 0, 0]
    """Red, green and blue of the pixels that a shear, a shift or a turn leaves open."""


class RandAugment(_Named):
    """RandAugment (Cubuk et al. 2020): `n` of 14 operations, all at one magnitude."""

    name: Literal["rand_augment"] = "rand_augment"
    n: Annotated[int, Field(ge=1, le=10)] = 2
    """Operations on each photo (N of the paper)."""
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9.0
    """Strength of every operation, from 0 to 30 (M of the paper)."""


class TrivialAugment(_Named):
    """TrivialAugment (Müller and Hutter 2021): one operation at a random strength, and no setting."""

    name: Literal["trivial_augment"] = "trivial_augment"
    space: Literal["wide", "rand_augment"] = "wide"
    """Ranges of the strengths: those of the paper's `wide` space, or those of RandAugment."""


class AugMix(_Named):
    """AugMix (Hendrycks et al. 2020): a photo blended with `width` chains of operations.

    This is the paper's augmentation without its consistency loss.
    """

    name: Literal["aug_mix"] = "aug_mix"
    severity: Annotated[int, Field(ge=1, le=10)] = 3
    """Each operation's strength is drawn among the `severity` lowest of ten."""
    width: Annotated[int, Field(ge=1, le=10)] = 3
    """Chains that are blended."""
    depth: Annotated[int, Field(ge=1, le=10)] | None = None
    """Operations of a chain; null draws 1 to 3."""
    alpha: Annotated[float, Field(ge=0.1, le=100)] = 1.0
    """Parameter of the Dirichlet and Beta distributions of the weights."""
    all_operations: bool = False
    """Add brightness, color, contrast and sharpness, which the paper keeps for its test."""


NamedPolicy = Annotated[RandAugment | TrivialAugment | AugMix, Field(discriminator="name")]
Range = Annotated[list[Positive], Field(min_length=2, max_length=2)]


class Erasing(Section):
    """Random erasing (Zhong et al. 2020, algorithm 1): a box of a photo is painted over."""

    p: Probability = 0.5
    """Probability that a photo has a box."""
    area: Range = [0.02, 0.4]
    """Least and largest share of the photo (s_l and s_h of the paper)."""
    aspect: Range = [0.3, 3.3]
    """Least and largest height over width (r_1 and r_2 of the paper)."""
    fill: Literal["random", "mean", "black", "white"] = "random"
    """Color of the box: random pixels (RE-R), ImageNet's mean (RE-M), black (RE-0), white (RE-255)."""

    @field_validator("area", "aspect")
    @classmethod
    def _ascending(cls, bounds: list[float]) -> list[float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"[least, largest] was required, found {bounds}")
        return bounds

    @field_validator("area")
    @classmethod
    def _share(cls, bounds: list[float]) -> list[float]:
        if bounds[1] >= 1:
            raise ValueError(f"shares of a photo below 1 were required, found {bounds}")
        return bounds
