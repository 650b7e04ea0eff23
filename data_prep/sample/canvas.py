"""A canvas in head coordinates: polygons, ellipses and lines with soft edges, light and noise."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

RGB = NDArray[np.uint8]
Point = tuple[float, float]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1


class Canvas:
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
        lit = np.array(to_rgb(color), float) * shade[box[1] : box[3], box[0] : box[2], None]
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

    def _paint(self, mask: Image.Image, box: Box, paint: object, blur: float, alpha: float) -> None:
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * self.unit))
        if alpha < 1:
            mask = mask.point(lambda value: int(value * alpha))
        self.image.paste(paint if isinstance(paint, Image.Image) else to_rgb(paint), box, mask)

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


def smooth(points: list[Point], rounds: int = 3) -> list[Point]:
    """Round a closed polygon (Chaikin 1974)."""
    for _ in range(rounds):
        rounded: list[Point] = []
        for a, b in zip(points, points[1:] + points[:1], strict=True):
            rounded.append((0.75 * a[0] + 0.25 * b[0], 0.75 * a[1] + 0.25 * b[1]))
            rounded.append((0.25 * a[0] + 0.75 * b[0], 0.25 * a[1] + 0.75 * b[1]))
        points = rounded
    return points


def texture(
    width: int, height: int, rng: np.random.Generator, scales: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return smooth noise of several scales, about -1 to 1, (H, W)."""
    total = np.zeros((height, width))
    for scale in scales:
        small = rng.normal(0, 1, (height // scale + 2, width // scale + 2)).astype(np.float32)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(large, float)
    return total / len(scales)


def to_rgb(color: object) -> tuple[int, int, int]:
    """Return a color as whole numbers from 0 to 255."""
    values = np.clip(np.asarray(color, float), 0, 255)
    return (int(values[0]), int(values[1]), int(values[2]))
