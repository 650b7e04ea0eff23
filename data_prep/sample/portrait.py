"""Drawn portraits: pictures of a person with the true silhouette and face box."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from data_prep.sample.canvas import RGB, Canvas, Point, smooth, texture
from data_prep.sample.person import Person, rng_for

_SS = 2  # supersampling: drawn twice as large and reduced, so that edges are smooth
_MASKS = (
    (238, 240, 242),
    (150, 190, 222),
    (70, 74, 84),
    (232, 184, 190),
    (132, 176, 150),
    (90, 110, 160),
)
Skin = NDArray[np.float64]  # (3,)


class Portrait(NamedTuple):
    """One drawn photo and what is true of it."""

    pixels: RGB  # (H, W, 3)
    silhouette: NDArray[np.bool_]  # (H, W)
    face_box: tuple[float, float, float, float]  # from the brows' top to the chin, in pixels


# tables of coordinates, one shape a line
# fmt: off
def draw(person: Person, photo: str, seed: int, size: tuple[int, int]) -> Portrait:
    """Draw one photo of a person, `size` (width, height) pixels large."""
    rng = rng_for(seed, person.id, photo)
    width = size[0] * _SS
    height = size[1] * _SS
    unit = width * 0.205 * rng.uniform(0.92, 1.08)  # half the width of a head
    center = (width * rng.uniform(0.46, 0.54), height * rng.uniform(0.40, 0.46))
    tilt = math.radians(rng.normal(0, 3.5))
    light = rng.uniform(-0.6, 0.6)
    canvas = Canvas(_background(width, height, rng), center, unit, tilt)
    skin = np.array(person.skin, float) * rng.uniform(0.93, 1.05)
    _hair_back(canvas, person, rng)
    _body(canvas, person, skin, rng)
    _head(canvas, person, skin, light, rng)
    _features(canvas, person, skin, rng)
    _hair_top(canvas, person, rng)
    if photo != "normal":
        _mask(canvas, photo, rng)
    return _finish(canvas, size, rng)


def _background(width: int, height: int, rng: np.random.Generator) -> RGB:
    """Draw a textured wall: color patches, then stripes, bricks or leaves, out of focus."""
    base = rng.uniform(70, 200) + rng.normal(0, 28, 3)
    other = np.clip(base + rng.normal(0, 40, 3), 20, 235)
    patches = texture(width, height, rng, (width // 3, width // 8))
    blend = np.clip(0.5 + 0.5 * patches, 0, 1)[..., None]
    wall = base * (1 - blend) + other * blend
    y, x = np.mgrid[:height, :width]
    step = int(rng.integers(width // 16, width // 7))
    kind = rng.integers(4)
    if kind == 0:
        stripe = (x + y * rng.choice([0, 1])) % step < step // 6
        wall = wall * np.where(stripe, 0.82, 1.0)[..., None]
    elif kind == 1:
        brick = ((y % step) < step // 9) | (((x + (y // step % 2) * step) % (2 * step)) < step // 9)
        wall = wall * np.where(brick, 1.16, 1.0)[..., None]
    wall += 13 * texture(width, height, rng, (6 * _SS, 2 * _SS))[..., None]
    image = Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.6) * _SS)))


def _hair_back(c: Canvas, p: Person, rng: np.random.Generator) -> None:
    if p.hair_length > 0.4:
        low = 0.4 + 1.9 * p.hair_length
        wide = 1.2 + 0.12 * rng.random()
        c.polygon(
            [
                (-wide * 0.85, -0.9), (0, -1.52), (wide * 0.85, -0.9), (wide, 0.2),
                (wide * 1.02, low),
                (0.5, low + 0.1), (-0.5, low + 0.1), (-wide * 1.02, low), (-wide, 0.2),
            ],
            np.array(p.hair) * 0.75,
            blur=0.03,
            solid=True,
        )


def _body(c: Canvas, p: Person, skin: Skin, rng: np.random.Generator) -> None:
    broad = (2.2 if p.gender == "male" else 1.95) * rng.uniform(0.95, 1.05)
    cloth = np.array(p.clothes, float) * rng.uniform(0.9, 1.1)
    fabric = 1 + 0.07 * texture(*c.image.size, rng, (2 * _SS, 8 * _SS, 40 * _SS))
    neck = 0.52 + 0.12 * p.jaw
    c.polygon(
        [(-neck, 0.8), (neck, 0.8), (neck + 0.1, 2.2), (0.2, 2.75), (-0.2, 2.75),
            (-neck - 0.1, 2.2)], skin * 0.82, blur=0.02, solid=True
    )
    c.ellipse((0, 1.42), (neck, 0.35), skin * 0.62, blur=0.12, alpha=0.6)
    c.polygon(
        [
            (-neck - 0.1, 1.75), (-1.2, 2.0), (-broad, 2.45), (-broad - 0.25, 6),
            (broad + 0.25, 6), (broad, 2.45),
            (1.2, 2.0), (neck + 0.1, 1.75), (0.25, 2.35), (-0.25, 2.35),
        ],
        cloth,
        blur=0.02,
        solid=True,
        shade=fabric,
    )
    c.line([(-neck - 0.1, 1.75), (-0.25, 2.4), (0, 2.7)], cloth * 0.6, 0.06)
    c.line([(neck + 0.1, 1.75), (0.25, 2.4), (0, 2.7)], cloth * 0.6, 0.06)


def _outline(p: Person) -> list[Point]:
    """Return the contour of a face, forehead to chin: a broad jaw is squarer, an old one sags."""
    sag = 0.1 * p.wrinkles
    jaw = 0.6 + 0.2 * p.jaw + sag
    half = [
        (0.0, -1.3), (0.45, -1.24), (0.78, -1.0), (0.95, -0.6), (1.0, -0.1), (0.97, 0.35),
        (0.9, 0.72),
        (jaw, 1.08 + sag / 2), (0.34, 1.36), (0.0, 1.42),
    ]
    return smooth(half + [(-x, y) for x, y in reversed(half[1:-1])])


def _head(c: Canvas, p: Person, skin: Skin, light: float, rng: np.random.Generator) -> None:
    for side in (-1, 1):
        c.ellipse((side * 1.02, 0.0), (0.16, 0.3), skin * 0.86, solid=True)
        c.ellipse((side * 1.03, 0.02), (0.08, 0.18), skin * 0.68, blur=0.03)
    pores = 1 + (0.018 + 0.02 * p.wrinkles) * texture(*c.image.size, rng, (2 * _SS, 5 * _SS))
    c.polygon(_outline(p), skin, blur=0.015, solid=True, shade=c.lighting(light) * pores)
    for side in (-1, 1):
        c.ellipse((side * 0.55, 0.42), (0.28, 0.2), skin * np.array((1.05, 0.86, 0.82)),
            blur=0.12, alpha=0.45)
    if p.beard > 0.15:
        jaw = [
            (-0.9, 0.35), (-0.62, 0.62), (-0.3, 0.56), (0, 0.6), (0.3, 0.56), (0.62, 0.62),
            (0.9, 0.35), (0.78, 0.95),
            (0.36, 1.36), (0, 1.43), (-0.36, 1.36), (-0.78, 0.95),
        ]
        c.polygon(smooth(jaw, 2),
            np.array(p.hair) * 0.9, blur=0.06, alpha=min(0.9, 0.25 + p.beard))


def _features(c: Canvas, p: Person, skin: Skin, rng: np.random.Generator) -> None:
    dark = skin * 0.5
    iris = np.array(((70, 46, 30), (88, 110, 120), (72, 90, 60), (46, 32, 24))[rng.integers(4)])
    gaze = rng.normal(0, 0.02)
    open_ = rng.uniform(0.1, 0.13)
    for side in (-1, 1):
        x = side * 0.42
        c.ellipse((x, -0.1), (0.27, 0.2), skin * 0.72, blur=0.08, alpha=0.65)
        c.polygon(
            smooth([(x - 0.22, -0.08), (x - 0.08, -0.08 - open_), (x + 0.1, -0.08 - open_),
                (x + 0.22, -0.08), (x, -0.08 + open_)], 2),
            (240, 238, 234),
            blur=0.01,
        )
        c.ellipse((x + gaze, -0.09), (0.095, 0.1), iris, blur=0.01)
        c.ellipse((x + gaze, -0.09), (0.045, 0.048), (12, 10, 10), blur=0.006)
        c.ellipse((x + gaze + 0.03, -0.125), (0.022, 0.022), (255, 255, 255), blur=0.004)
        c.line(
            [(x - 0.24, -0.07), (x - 0.09, -0.1 - open_), (x + 0.09, -0.1 - open_),
                (x + 0.24, -0.07)],
            (26, 20, 18),
            0.045 + 0.03 * p.lips,
            blur=0.012,
        )
        c.line([(x - 0.2, -0.05), (x, -0.06 + open_), (x + 0.2, -0.05)], dark, 0.02, alpha=0.6)
        arch = -0.42 - 0.04 * (1 - p.brow)
        brow = np.array(p.hair) * 0.8
        c.line(
            [(x - side * 0.24, arch + 0.08), (x + side * 0.02, arch),
                (x + side * 0.29, arch + 0.07)],
            brow,
            0.05 + 0.08 * p.brow,
            blur=0.022,
            alpha=0.9,
        )
    c.polygon([(-0.06, -0.1), (0.06, -0.1), (0.15, 0.42), (0, 0.5), (-0.15, 0.42)],
        skin * 1.16, blur=0.06, alpha=0.8)
    c.ellipse((0.05, -0.72), (0.4, 0.2), skin * 1.14, blur=0.16, alpha=0.6)
    for side in (-1, 1):
        c.line([(side * 0.13, -0.16), (side * 0.11, 0.05), (side * 0.17, 0.34)],
            skin * 0.66, 0.05, blur=0.05, alpha=0.55)
    c.line([(0.09, -0.1), (0.14, 0.25), (0.2, 0.4)], skin * 0.7, 0.05, blur=0.04, alpha=0.7)
    c.ellipse((0, 0.45), (0.2, 0.075), skin * 0.7, blur=0.04, alpha=0.75)
    for side in (-1, 1):
        c.ellipse((side * 0.1, 0.46), (0.05, 0.032), skin * 0.32, blur=0.012)
    smile = rng.uniform(0.0, 0.06)
    full = 0.055 + 0.05 * p.lips
    lip = skin * np.array((0.86, 0.52, 0.5)) * (1 - p.lips * 0.2) + np.array((40, 0, 5)) * p.lips
    c.polygon(
        smooth(
            [
                (-0.34, 0.8 - smile), (-0.1, 0.8 - full), (0, 0.82 - full), (0.1, 0.8 - full),
                (0.34, 0.8 - smile),
                (0.14, 0.83 + full), (-0.14, 0.83 + full),
            ],
            2,
        ),
        lip,
        blur=0.015,
    )
    c.line([(-0.33, 0.8 - smile), (0, 0.82), (0.33, 0.8 - smile)], lip * 0.45, 0.03, blur=0.012)
    _wrinkles(c, p, skin, rng)


def _wrinkles(c: Canvas, p: Person, skin: Skin, rng: np.random.Generator) -> None:
    if p.wrinkles < 0.12:
        return
    line = skin * 0.56
    strong = min(1.0, 0.25 + 0.85 * p.wrinkles)
    for row in range(int(1 + 3.2 * p.wrinkles)):
        y = -0.62 - 0.15 * row + rng.normal(0, 0.015)
        c.line([(-0.55, y + 0.04), (-0.2, y), (0.2, y + 0.01), (0.55, y + 0.05)],
            line, 0.032, alpha=strong * 0.8)
    for side in (-1, 1):
        c.line([(side * 0.2, 0.42), (side * 0.36, 0.6), (side * 0.42, 0.84)],
            line, 0.045, alpha=strong)
        c.line([(side * 0.22, 0.1), (side * 0.42, 0.16), (side * 0.6, 0.08)],
            line, 0.05, blur=0.03, alpha=strong * 0.9)
        for row in range(int(4 * p.wrinkles)):
            c.line([(side * 0.68, -0.1 + 0.06 * row), (side * 0.86, -0.17 + 0.1 * row)],
                line, 0.028, alpha=strong)
        c.line([(side * 0.4, 0.9), (side * 0.5, 1.12)],
            line, 0.05, blur=0.03, alpha=strong * p.wrinkles)


def _hair_top(c: Canvas, p: Person, rng: np.random.Generator) -> None:
    line = -0.82 - 0.42 * p.recede
    strands = 1 + 0.16 * texture(*c.image.size, rng, (2 * _SS, 6 * _SS))
    side = 0.1 + 0.5 * p.hair_length - 0.35 * p.recede
    part = rng.uniform(-0.3, 0.3)
    outer = [
        (-1.06, side), (-1.12, -0.5), (-0.92, -1.15), (-0.4, -1.5), (0.1, -1.56), (0.5, -1.47),
        (0.95, -1.12),
        (1.12, -0.5), (1.06, side),
    ]
    inner = [
        (0.93, side - 0.05), (0.92, -0.45), (0.7, line + 0.05), (part + 0.2, line - 0.06),
        (part, line - 0.1),
        (-0.65, line + 0.04), (-0.92, -0.45), (-0.93, side - 0.05),
    ]
    c.polygon(smooth(outer + inner, 2), p.hair, blur=0.022, solid=True, shade=strands)


def _mask(c: Canvas, photo: str, rng: np.random.Generator) -> None:
    """Put a mask on: over nose and mouth, or wrongly (below the nose, on the chin, on the eyes)."""
    how = "worn"
    if photo == "incorrect_mask":
        how = str(rng.choice(["nose", "chin", "eyes"], p=[0.5, 0.35, 0.15]))
    top, bottom, side_top, wide = {
        "worn": (0.26, 1.46, 0.36, 0.95),
        "nose": (0.6, 1.5, 0.55, 0.94),
        "chin": (1.02, 1.62, 0.86, 0.86),
        "eyes": (-0.42, 0.34, -0.3, 1.0),
    }[how]
    color = np.array(_MASKS[rng.integers(len(_MASKS))], float) * rng.uniform(0.92, 1.04)
    middle = (top + bottom) / 2
    for side in (-1, 1):
        c.line([(side * wide, side_top + 0.05), (side * 1.06, -0.12)], (236, 236, 236),
            0.035, blur=0.012)
        c.line([(side * wide * 0.9, bottom - 0.3), (side * 1.07, 0.12)], (236, 236, 236),
            0.035, blur=0.012)
    shape = [
        (-wide, side_top), (-0.5, (top + side_top) / 2), (0, top - 0.06),
        (0.5, (top + side_top) / 2),
        (wide, side_top), (wide * 0.92, middle + 0.15), (0.62, bottom - 0.16), (0, bottom),
        (-0.62, bottom - 0.16),
        (-wide * 0.92, middle + 0.15),
    ]
    lighting = c.lighting(rng.uniform(-0.5, 0.5), 0.2)
    shade = lighting * (1 + 0.02 * texture(*c.image.size, rng, (2 * _SS,)))
    c.polygon(smooth(shape, 2), color, blur=0.012, solid=True, shade=shade)
    c.polygon([(-0.1, top), (0.1, top), (0.24, middle), (0, middle + 0.2), (-0.24, middle)],
        color * 1.12, blur=0.09, alpha=0.7)
    c.ellipse((0, middle + 0.05), (0.34, 0.12), color * 0.84, blur=0.08, alpha=0.5)
    for share in rng.permutation([0.3, 0.5, 0.7])[: rng.integers(2, 4)]:
        y = side_top + (bottom - side_top) * share
        c.line([(-wide * 0.84, y), (0, y + 0.07), (wide * 0.84, y)],
            color * 0.8, 0.03, blur=0.02, alpha=0.8)
    c.line([(-0.5, (top + side_top) / 2 + 0.05), (0, top), (0.5, (top + side_top) / 2 + 0.05)],
        color * 0.72, 0.04, blur=0.02, alpha=0.7)


def _finish(c: Canvas, size: tuple[int, int], rng: np.random.Generator) -> Portrait:
    small = np.asarray(c.image.resize(size, Image.Resampling.BOX), float)
    small = (small - 128) * rng.uniform(0.9, 1.08) + 128 + rng.uniform(-10, 12)
    small = small * rng.normal(1.0, 0.025, 3) + rng.normal(0, rng.uniform(1.0, 3.5), small.shape)
    shape = np.asarray(c.shape.resize(size, Image.Resampling.BOX)) > 127
    face = ((-1.0, -0.85), (1.0, -0.85), (1.0, 1.42), (-1.0, 1.42))
    corners = np.array([c.at(point) for point in face]) / _SS
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    pixels = np.clip(small, 0, 255).astype(np.uint8)
    return Portrait(pixels, shape, (float(x0), float(y0), float(x1), float(y1)))
