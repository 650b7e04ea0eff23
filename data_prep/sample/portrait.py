"""Drawn portraits: a person's traits, and pictures of them with the true silhouette and face box.

Nobody in these pictures exists. Age shows in hair color, hairline, wrinkles and jowls; gender in
hair length, brows, jaw, lips and beard. Both overlap, as they do in people.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

_SS = 2  # supersampling: drawn twice as large and reduced, so that edges are smooth
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
_MASKS = (
    (238, 240, 242),
    (150, 190, 222),
    (70, 74, 84),
    (232, 184, 190),
    (132, 176, 150),
    (90, 110, 160),
)
RGB = NDArray[np.uint8]
Point = tuple[float, float]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1
Skin = NDArray[np.float64]  # (3,)


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
        hair=_color(hair),
        hair_length=float(np.clip(rng.normal(0.75 if female else 0.15, 0.2), 0, 1)),
        recede=float(np.clip((0 if female else 0.75) * old + rng.normal(-0.15, 0.15), 0, 1)),
        wrinkles=float(np.clip(old * 1.15 - 0.15 + rng.normal(0, 0.07), 0, 1)),
        jaw=float(np.clip(rng.normal(0.3 if female else 0.7, 0.16) + 0.15 * old, 0, 1)),
        brow=float(np.clip(rng.normal(0.3 if female else 0.7, 0.18), 0, 1)),
        beard=float(np.clip(rng.normal(-0.3 if female else 0.35, 0.3), 0, 1) * (not female)),
        lips=float(np.clip(rng.normal(0.75 if female else 0.25, 0.18), 0, 1)),
        clothes=_CLOTHES[rng.integers(len(_CLOTHES))],
    )


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
    canvas = _Canvas(_background(width, height, rng), center, unit, tilt)
    skin = np.array(person.skin, float) * rng.uniform(0.93, 1.05)
    _hair_back(canvas, person, rng)
    _body(canvas, person, skin, rng)
    _head(canvas, person, skin, light, rng)
    _features(canvas, person, skin, rng)
    _hair_top(canvas, person, rng)
    if photo != "normal":
        _mask(canvas, photo, rng)
    return _finish(canvas, size, rng)


class _Canvas:
    """A picture being drawn in head coordinates.

    x points to the right and y down; the unit is half a head's width, the origin the face's middle.
    """

    def __init__(self, background: RGB, center: Point, unit: float, tilt: float) -> None:
        self.image = Image.fromarray(background)
        self.shape = Image.new("L", self.image.size, 0)
        self.center = center
        self.unit = unit
        self.cos = math.cos(tilt)
        self.sin = math.sin(tilt)

    def at(self, point: Point) -> Point:
        """Return a point in pixels."""
        x, y = point
        right = self.unit * (x * self.cos - y * self.sin)
        down = self.unit * (x * self.sin + y * self.cos)
        return (self.center[0] + right, self.center[1] + down)

    def polygon(
        self,
        points: list[Point],
        color: object,
        *,
        blur: float = 0.0,
        alpha: float = 1.0,
        solid: bool = False,
        shade: NDArray[np.float64] | None = None,
    ) -> None:
        """Fill a polygon, its edge softened by `blur` units; a `solid` one is of the silhouette."""
        placed = [self.at(point) for point in points]
        box, local = self._region(placed, blur)
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]), 0)
        ImageDraw.Draw(mask).polygon(local, fill=255)
        if solid:
            self.shape.paste(255, box, mask)
        if shade is None:
            self._paint(mask, box, color, blur, alpha)
            return
        lit = np.array(_color(color), float) * shade[box[1] : box[3], box[0] : box[2], None]
        self._paint(mask, box, Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)), blur, alpha)

    def _region(self, placed: list[Point], margin: float) -> tuple[Box, list[Point]]:
        """Return the box of a shape with its soft edge, and the shape in it."""
        pad = 3 + 3 * margin * self.unit
        xs = [x for x, _ in placed]
        ys = [y for _, y in placed]
        left = max(0, int(min(xs) - pad))
        top = max(0, int(min(ys) - pad))
        right = min(self.image.width, int(max(xs) + pad) + 1)
        bottom = min(self.image.height, int(max(ys) + pad) + 1)
        box = (left, top, max(right, left + 1), max(bottom, top + 1))
        return box, [(x - left, y - top) for x, y in placed]

    def _paint(
        self, mask: Image.Image, box: Box, paint: object, blur: float, alpha: float
    ) -> None:
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * self.unit))
        if alpha < 1:
            mask = mask.point(lambda value: int(value * alpha))
        self.image.paste(paint if isinstance(paint, Image.Image) else _color(paint), box, mask)

    def ellipse(
        self,
        middle: Point,
        radii: Point,
        color: object,
        *,
        blur: float = 0.0,
        alpha: float = 1.0,
        solid: bool = False,
    ) -> None:
        self.polygon(_oval(middle, radii), color, blur=blur, alpha=alpha, solid=solid)

    def line(
        self,
        points: list[Point],
        color: object,
        thick: float,
        *,
        blur: float = 0.02,
        alpha: float = 1.0,
    ) -> None:
        box, local = self._region([self.at(point) for point in points], blur + thick)
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]), 0)
        n_pixels = max(1, round(thick * self.unit))
        ImageDraw.Draw(mask).line(local, fill=255, width=n_pixels, joint="curve")
        self._paint(mask, box, color, blur, alpha)

    def lighting(self, light: float, depth: float = 0.38) -> NDArray[np.float64]:
        """Shade a ball the size of the head, lit from the upper left (light < 0) or right."""
        y, x = np.mgrid[: self.image.height, : self.image.width].astype(float)
        x = (x - self.center[0]) / (1.25 * self.unit)
        y = (y - self.center[1]) / (1.6 * self.unit)
        z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
        return np.asarray(1 - depth + depth * 1.25 * z + 0.16 * light * x - 0.08 * y)


def _oval(middle: Point, radii: Point, n: int = 48) -> list[Point]:
    turn = np.linspace(0, 2 * math.pi, n, endpoint=False)
    return [(middle[0] + radii[0] * math.cos(t), middle[1] + radii[1] * math.sin(t)) for t in turn]


def _color(color: object) -> tuple[int, int, int]:
    values = np.clip(np.asarray(color, float), 0, 255)
    return (int(values[0]), int(values[1]), int(values[2]))


def _texture(
    width: int, height: int, rng: np.random.Generator, scales: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return smooth noise of several scales, about -1 to 1, (H, W)."""
    total = np.zeros((height, width))
    for scale in scales:
        small = rng.normal(0, 1, (height // scale + 2, width // scale + 2)).astype(np.float32)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(large, float)
    return total / len(scales)


def _background(width: int, height: int, rng: np.random.Generator) -> RGB:
    """Draw a textured wall: color patches, then stripes, bricks or leaves, out of focus."""
    base = rng.uniform(70, 200) + rng.normal(0, 28, 3)
    other = np.clip(base + rng.normal(0, 40, 3), 20, 235)
    patches = _texture(width, height, rng, (width // 3, width // 8))
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
    wall += 13 * _texture(width, height, rng, (6 * _SS, 2 * _SS))[..., None]
    image = Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.6) * _SS)))


def _hair_back(c: _Canvas, p: Person, rng: np.random.Generator) -> None:
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


def _body(c: _Canvas, p: Person, skin: Skin, rng: np.random.Generator) -> None:
    broad = (2.2 if p.gender == "male" else 1.95) * rng.uniform(0.95, 1.05)
    cloth = np.array(p.clothes, float) * rng.uniform(0.9, 1.1)
    fabric = 1 + 0.07 * _texture(*c.image.size, rng, (2 * _SS, 8 * _SS, 40 * _SS))
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
    return _smooth(half + [(-x, y) for x, y in reversed(half[1:-1])])


def _smooth(points: list[Point], rounds: int = 3) -> list[Point]:
    """Round a closed polygon (Chaikin 1974)."""
    for _ in range(rounds):
        rounded: list[Point] = []
        for a, b in zip(points, points[1:] + points[:1], strict=True):
            rounded.append((0.75 * a[0] + 0.25 * b[0], 0.75 * a[1] + 0.25 * b[1]))
            rounded.append((0.25 * a[0] + 0.75 * b[0], 0.25 * a[1] + 0.75 * b[1]))
        points = rounded
    return points


def _head(c: _Canvas, p: Person, skin: Skin, light: float, rng: np.random.Generator) -> None:
    for side in (-1, 1):
        c.ellipse((side * 1.02, 0.0), (0.16, 0.3), skin * 0.86, solid=True)
        c.ellipse((side * 1.03, 0.02), (0.08, 0.18), skin * 0.68, blur=0.03)
    pores = 1 + (0.018 + 0.02 * p.wrinkles) * _texture(*c.image.size, rng, (2 * _SS, 5 * _SS))
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
        c.polygon(_smooth(jaw, 2),
            np.array(p.hair) * 0.9, blur=0.06, alpha=min(0.9, 0.25 + p.beard))


def _features(c: _Canvas, p: Person, skin: Skin, rng: np.random.Generator) -> None:
    dark = skin * 0.5
    iris = np.array(((70, 46, 30), (88, 110, 120), (72, 90, 60), (46, 32, 24))[rng.integers(4)])
    gaze = rng.normal(0, 0.02)
    open_ = rng.uniform(0.1, 0.13)
    for side in (-1, 1):
        x = side * 0.42
        c.ellipse((x, -0.1), (0.27, 0.2), skin * 0.72, blur=0.08, alpha=0.65)
        c.polygon(
            _smooth([(x - 0.22, -0.08), (x - 0.08, -0.08 - open_), (x + 0.1, -0.08 - open_),
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
        _smooth(
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


def _wrinkles(c: _Canvas, p: Person, skin: Skin, rng: np.random.Generator) -> None:
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


def _hair_top(c: _Canvas, p: Person, rng: np.random.Generator) -> None:
    line = -0.82 - 0.42 * p.recede
    strands = 1 + 0.16 * _texture(*c.image.size, rng, (2 * _SS, 6 * _SS))
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
    c.polygon(_smooth(outer + inner, 2), p.hair, blur=0.022, solid=True, shade=strands)


def _mask(c: _Canvas, photo: str, rng: np.random.Generator) -> None:
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
    shade = lighting * (1 + 0.02 * _texture(*c.image.size, rng, (2 * _SS,)))
    c.polygon(_smooth(shape, 2), color, blur=0.012, solid=True, shade=shade)
    c.polygon([(-0.1, top), (0.1, top), (0.24, middle), (0, middle + 0.2), (-0.24, middle)],
        color * 1.12, blur=0.09, alpha=0.7)
    c.ellipse((0, middle + 0.05), (0.34, 0.12), color * 0.84, blur=0.08, alpha=0.5)
    for share in rng.permutation([0.3, 0.5, 0.7])[: rng.integers(2, 4)]:
        y = side_top + (bottom - side_top) * share
        c.line([(-wide * 0.84, y), (0, y + 0.07), (wide * 0.84, y)],
            color * 0.8, 0.03, blur=0.02, alpha=0.8)
    c.line([(-0.5, (top + side_top) / 2 + 0.05), (0, top), (0.5, (top + side_top) / 2 + 0.05)],
        color * 0.72, 0.04, blur=0.02, alpha=0.7)


def _finish(c: _Canvas, size: tuple[int, int], rng: np.random.Generator) -> Portrait:
    small = np.asarray(c.image.resize(size, Image.Resampling.BOX), float)
    small = (small - 128) * rng.uniform(0.9, 1.08) + 128 + rng.uniform(-10, 12)
    small = small * rng.normal(1.0, 0.025, 3) + rng.normal(0, rng.uniform(1.0, 3.5), small.shape)
    shape = np.asarray(c.shape.resize(size, Image.Resampling.BOX)) > 127
    face = ((-1.0, -0.85), (1.0, -0.85), (1.0, 1.42), (-1.0, 1.42))
    corners = np.array([c.at(point) for point in face]) / _SS
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    pixels = np.clip(small, 0, 255).astype(np.uint8)
    return Portrait(pixels, shape, (float(x0), float(y0), float(x1), float(y1)))
