"""Drawn plants: photos of leaves that are healthy, or have rust or spots, several of each plant.

The photos of one plant share its leaf, its colour and the ground below it, so a split that puts
them on both sides scores too well. All randomness comes from (seed, plant, photo).
"""

from __future__ import annotations

import math
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from data_prep.sample.canvas import RGB
from data_prep.sample.person import rng_for

STATES = ("healthy", "rust", "spots")
MIN_PLANTS = 15
_SHARES = (0.4, 0.35, 0.25)
_N_NEW = 4  # plants of each state without a folder of their own
_SCALE = 2  # drawn twice as large and reduced, so that edges are smooth
_GROUNDS = ((112, 84, 62), (150, 142, 130), (86, 92, 80), (176, 160, 132), (70, 70, 76))
_RUST = (176, 88, 28)
_SPOT = (74, 52, 34)
_HALO = (190, 178, 72)
Points = NDArray[np.float64]  # (n, 2)


@dataclass(frozen=True)
class Plant:
    """One drawn plant; lengths are shares of the photo's shorter side."""

    id: str
    state: str
    length: float  # of half a leaf
    width: float  # of half a leaf, as a share of its length
    teeth: float  # depth of the leaf's edge, 0 for a smooth one
    green: tuple[float, float, float]
    ground: tuple[float, float, float]
    severity: float  # 0 to 1


def make_plant(number: int, state: str, seed: int) -> Plant:
    """Draw what is constant in the photos of one plant."""
    rng = rng_for(seed, "plant", number)
    ground = np.array(_GROUNDS[rng.integers(len(_GROUNDS))]) + rng.normal(0, 12, 3)
    green = np.array((74, 128, 56)) + rng.normal(0, 13, 3) + rng.normal(0, 14)
    return Plant(
        id=f"plant-{number:03}",
        state=state,
        length=float(rng.uniform(0.34, 0.44)),
        width=float(rng.uniform(0.36, 0.62)),
        teeth=float(rng.choice([0.0, rng.uniform(0.03, 0.1)])),
        green=_colour(green),
        ground=_colour(ground),
        severity=float(rng.beta(1.6, 1.8)),
    )


def _colour(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = np.clip(values, 15, 240)
    return float(red), float(green), float(blue)


def draw(plant: Plant, photo: int, seed: int, size: tuple[int, int]) -> RGB:
    """Draw one photo of a plant's leaf, `size` (width, height) pixels large, (H, W, 3)."""
    rng = rng_for(seed, plant.id, photo)
    width = size[0] * _SCALE
    height = size[1] * _SCALE
    leaf = _Leaf(plant, rng, width, height)
    image = Image.fromarray(_ground(plant, rng, width, height))
    outline = leaf.place(_outline(plant))
    shadow = Image.new("L", image.size, 0)
    ImageDraw.Draw(shadow).polygon([(x + 4, y + 6) for x, y in outline], fill=120)
    image.paste((12, 12, 12), (0, 0), shadow.filter(ImageFilter.GaussianBlur(5)))
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    image.paste(_surface(plant, leaf, rng), (0, 0), mask)
    photo_light = rng.uniform(0.86, 1.12)
    small = image.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(small, float) * photo_light + rng.normal(0, 3, (size[1], size[0], 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


class _Leaf:
    """Where a leaf lies in the photo: its coordinates are along (-1 to 1) and across."""

    def __init__(self, plant: Plant, rng: np.random.Generator, width: int, height: int) -> None:
        self.size = (width, height)
        self.unit = plant.length * min(width, height) * rng.uniform(0.92, 1.08)
        self.centre = (width * rng.uniform(0.45, 0.55), height * rng.uniform(0.45, 0.55))
        angle = rng.uniform(0, 2 * math.pi)
        self.cos = math.cos(angle)
        self.sin = math.sin(angle)

    def place(self, points: Points) -> list[tuple[float, float]]:
        """Return points of the leaf in pixels."""
        placed = []
        for along, across in points:
            x = self.centre[0] + self.unit * (along * self.cos - across * self.sin)
            y = self.centre[1] + self.unit * (along * self.sin + across * self.cos)
            placed.append((x, y))
        return placed


def _half_width(plant: Plant, along: Points) -> Points:
    """Return half the width of a leaf at places from its stem (-1) to its tip (1)."""
    body = np.clip(1 - along**2, 0, 1) ** 0.7 * (1 - 0.22 * along)
    return np.asarray(plant.width * body * (1 + plant.teeth * np.sin(34 * along)))


def _outline(plant: Plant) -> Points:
    along = np.linspace(-1, 1, 160)
    half = _half_width(plant, along)
    upper = np.stack([along, half], axis=1)
    lower = np.stack([along[::-1], -half[::-1]], axis=1)
    stem = np.array([(-1.0, -0.025), (-1.35, -0.03), (-1.35, 0.03), (-1.0, 0.025)])
    return np.concatenate([stem, upper, lower])


def _noise(rng: np.random.Generator, width: int, height: int, step: int) -> Points:
    """Return smooth noise, about -1 to 1, (H, W)."""
    small = rng.normal(0, 1, (height // step + 2, width // step + 2)).astype(np.float32)
    large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(large, float)


def _ground(plant: Plant, rng: np.random.Generator, width: int, height: int) -> RGB:
    grain = 9 * _noise(rng, width, height, 3) + 14 * _noise(rng, width, height, width // 5)
    pixels = np.array(plant.ground) + grain[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _surface(plant: Plant, leaf: _Leaf, rng: np.random.Generator) -> Image.Image:
    """Draw the leaf's colour, veins, and what its state leaves on it."""
    width, height = leaf.size
    shade = 1 + 0.06 * _noise(rng, width, height, 5) + 0.09 * _noise(rng, width, height, width // 6)
    colour = np.array(plant.green) * rng.uniform(0.94, 1.06) * shade[..., None]
    image = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    vein = _ints(np.array(plant.green) * 1.3)
    pen.line(leaf.place(np.array([(-1.3, 0.0), (0.96, 0.0)])), fill=vein, width=3 * _SCALE // 2)
    for start in np.linspace(-0.75, 0.6, 7):
        for side in (-1, 1):
            end = (start + 0.3, side * plant.width * 0.9)
            pen.line(leaf.place(np.array([(start, 0.0), end])), fill=vein, width=_SCALE // 2)
    if plant.state == "rust":
        n_pustules = int(4 + 40 * plant.severity * rng.uniform(0.5, 1.2))
        for middle in _places(plant, n_pustules, rng):
            _blot(pen, leaf, middle, rng.uniform(0.012, 0.026), _vary(_RUST, rng))
    elif plant.state == "spots":
        n_spots = int(1 + 6 * plant.severity * rng.uniform(0.5, 1.3))
        for middle in _places(plant, n_spots, rng):
            radius = rng.uniform(0.03, 0.09)
            _blot(pen, leaf, middle, radius * 1.3, _ints((np.array(_HALO) + plant.green) / 2))
            _blot(pen, leaf, middle, radius, _vary(_SPOT, rng))
    # every leaf has a few marks that mean nothing
    for middle in _places(plant, int(rng.integers(0, 6)), rng):
        mark = (np.array(plant.green) + rng.choice([_SPOT, _RUST])) / 2
        _blot(pen, leaf, middle, rng.uniform(0.012, 0.05), _ints(mark))
    return image.filter(ImageFilter.GaussianBlur(0.7 * _SCALE))


def _places(plant: Plant, n: int, rng: np.random.Generator) -> Points:
    """Return n places on the leaf, (n, 2)."""
    along = rng.uniform(-0.85, 0.85, n)
    across = rng.uniform(-0.9, 0.9, n) * _half_width(plant, along)
    return np.stack([along, across], axis=1)


def _blot(
    pen: ImageDraw.ImageDraw,
    leaf: _Leaf,
    middle: Points,
    radius: float,
    colour: tuple[int, int, int],
) -> None:
    ((x, y),) = leaf.place(middle[None])
    reach = radius * leaf.unit
    pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)


def _vary(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    return _ints(np.array(colour) * rng.uniform(0.8, 1.2))


def _ints(values: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = np.clip(values, 0, 255)
    return int(red), int(green), int(blue)


def states_of(n_plants: int) -> list[str]:
    """Return the state of every plant: two fifths are healthy, a quarter has spots.

    Raises:
        ValueError: too few plants to split them.
    """
    if n_plants < MIN_PLANTS:
        raise ValueError(
            f"--plants: at least {MIN_PLANTS} are required, found {n_plants}; ask for more"
        )
    n_healthy = round(n_plants * _SHARES[0])
    n_rust = round(n_plants * _SHARES[1])
    counts = (n_healthy, n_rust, n_plants - n_healthy - n_rust)
    return [state for state, n in zip(STATES, counts, strict=True) for _ in range(n)]


def build(
    out: Path,
    n_plants: int,
    *,
    n_photos: int = 5,
    seed: int = 0,
    size: tuple[int, int] = (160, 160),
    jobs: int = 1,
) -> None:
    """Write `images/<state>/plant-<id>_<photo>.jpg`, and photos of other plants in `new/`.

    Args:
        out: a new or empty folder.
        n_plants: in all states together.
        n_photos: of each plant.
        seed: of all randomness.
        size: width and height of a photo in pixels.
        jobs: processes.

    Raises:
        ValueError: too few plants, or `out` is not empty.
    """
    states = states_of(n_plants)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: a new or empty folder was required, found something in it")
    plants = [make_plant(number, state, seed) for number, state in enumerate(states, 1)]
    with ProcessPoolExecutor(jobs) as pool:
        write = partial(_write_plant, out=out, n_photos=n_photos, seed=seed, size=size)
        list(pool.map(write, plants, chunksize=4))
    for index in range(_N_NEW * len(STATES)):
        state = STATES[index % len(STATES)]
        plant = make_plant(n_plants + 1 + index, state, seed)
        name = f"{state}-{1 + index // len(STATES)}.jpg"
        _save(draw(plant, 1, seed, size), out / "new" / name)
    n_all = n_plants * n_photos
    sys.stderr.write(f"drew {n_all} photos of {n_plants} plants, and {_N_NEW * len(STATES)} new\n")


def _write_plant(
    plant: Plant, *, out: Path, n_photos: int, seed: int, size: tuple[int, int]
) -> None:
    for photo in range(1, n_photos + 1):
        pixels = draw(plant, photo, seed, size)
        _save(pixels, out / "images" / plant.state / f"{plant.id}_{photo}.jpg")


def _save(pixels: RGB, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=92)
