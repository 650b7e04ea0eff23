"""A drawn person: traits from overlapping distributions.

Nobody in these pictures exists. Age shows in hair color, hairline, wrinkles and jowls; gender in
hair length, brows, jaw, lips and beard. Both overlap, as they do in people.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from data_prep.sample.canvas import to_rgb

_SKIN = (
    (244, 208, 177),
    (232, 190, 160),
    (215, 165, 130),
    (196, 144, 110),
    (168, 118, 88),
    (140, 96, 72),
)
_HAIR = ((28, 22, 20), (52, 36, 26), (88, 58, 36), (120, 82, 48), (160, 118, 70), (96, 44, 28))
_CLOTHES = (
    (40, 52, 84),
    (120, 36, 44),
    (58, 92, 70),
    (200, 200, 205),
    (30, 30, 34),
    (170, 140, 96),
    (88, 74, 120),
)


@dataclass(frozen=True)
class Person:
    """One drawn person; traits from 0 to 1 unless said."""

    id: str
    gender: str
    age: int  # years; older than 60 is written 60
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    hair_length: float
    recede: float
    wrinkles: float
    jaw: float  # narrow to broad
    brow: float
    beard: float
    lips: float
    clothes: tuple[int, int, int]

    @property
    def group(self) -> int:
        """Gender * 3 + age group."""
        return (self.gender == "female") * 3 + (self.age >= 30) + (self.age >= 60)

    @property
    def folder(self) -> str:
        return f"{self.id}_{self.gender}_drawn_{self.age}"


def rng_for(*parts: object) -> np.random.Generator:
    """Return a generator that depends on the parts alone."""
    return np.random.default_rng(
        int(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16], 16)
    )


def make_person(number: int, gender: str, age_group: int, seed: int) -> Person:
    """Draw the traits of one person from overlapping distributions."""
    rng = rng_for(seed, "person", number)
    female = gender == "female"
    age = (
        int(rng.choice([18, 19, 20, 21, 22, 23, 24, 25, 29])),
        int(rng.choice([30, 36, 41, 45, 48, 50, 52, 54, 56, 57, 58, 59])),
        60,
    )[age_group]
    old = np.clip(
        (0.08, 0.45, 0.9)[age_group] + (age - 45) / 200 * (age_group == 1) + rng.normal(0, 0.1),
        0,
        1,
    )
    gray = np.clip((old - 0.42) * 1.9 + rng.normal(0, 0.13), 0, 1)
    skin = int(rng.integers(len(_SKIN)))
    base = np.array(_HAIR[rng.integers(len(_HAIR) if skin < 3 else 3)], float)
    hair = base * (1 - gray) + np.array((205, 203, 200)) * gray
    return Person(
        id=f"{number:06}",
        gender=gender,
        age=age,
        skin=_SKIN[skin],
        hair=to_rgb(hair),
        hair_length=float(np.clip(rng.normal(0.75 if female else 0.15, 0.2), 0, 1)),
        recede=float(np.clip((0 if female else 0.75) * old + rng.normal(-0.15, 0.15), 0, 1)),
        wrinkles=float(np.clip(old * 1.15 - 0.15 + rng.normal(0, 0.07), 0, 1)),
        jaw=float(np.clip(rng.normal(0.3 if female else 0.7, 0.16) + 0.15 * old, 0, 1)),
        brow=float(np.clip(rng.normal(0.3 if female else 0.7, 0.18), 0, 1)),
        beard=float(np.clip(rng.normal(-0.3 if female else 0.35, 0.3), 0, 1) * (not female)),
        lips=float(np.clip(rng.normal(0.75 if female else 0.25, 0.18), 0, 1)),
        clothes=_CLOTHES[rng.integers(len(_CLOTHES))],
    )
