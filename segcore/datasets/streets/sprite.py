"""A small picture with a shape, drawn polygon by polygon, then stamped on the canvas by depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segcore.datasets.streets.noise import FloatArray, fine, look
from segcore.datasets.streets.scene import Scene
from segcore.datasets.streets.view import Canvas, View, hazed

Point = tuple[float, float]
BRIGHTEST = 4.0


class Sprite:
    """A drawing surface over the part of the canvas that a box of pixels covers.

    Colours are linear in 0..BRIGHTEST; they are kept in 8 bits as square roots.

    Args:
        view: gives the size of the canvas.
        points: outline in pixels; the surface covers its bounding box.
    """

    def __init__(self, view: View, points: Sequence[Sequence[float]]) -> None:
        height, width = view.height, view.width
        self._unit = height
        xs, ys = [p[0] for p in points] or [0.0], [p[1] for p in points] or [0.0]
        self.left = int(np.clip(np.floor(min(xs)) - 1, 0, width))
        self.top = int(np.clip(np.floor(min(ys)) - 1, 0, height))
        self.right = int(np.clip(np.ceil(max(xs)) + 1, 0, width))
        self.bottom = int(np.clip(np.ceil(max(ys)) + 1, 0, height))
        self.empty = self.right <= self.left or self.bottom <= self.top
        size = (max(1, self.right - self.left), max(1, self.bottom - self.top))
        self._picture = Image.new("RGB", size)
        self._shape = Image.new("L", size)
        self._colour_pen = ImageDraw.Draw(self._picture)
        self._shape_pen = ImageDraw.Draw(self._shape)

    def polygon(self, points: Sequence[Sequence[float]], light: FloatArray) -> None:
        """Fill a polygon, in pixels of the canvas, with linear light [3]."""
        if len(points) < 3:
            return
        local = [(x - self.left, y - self.top) for x, y in points]
        red, green, blue = (
            int(sqrt(min(max(value, 0.0), BRIGHTEST) / BRIGHTEST) * 255 + 0.5)
            for value in light.tolist()
        )
        self._colour_pen.polygon(local, fill=(red, green, blue))
        self._shape_pen.polygon(local, fill=1)

    def ellipse(self, centre: Point, radii: Point, light: FloatArray) -> None:
        """Fill an upright ellipse."""
        self.polygon(ring(centre, radii), light)

    def limb(self, start: Point, end: Point, widths: Point, light: FloatArray) -> None:
        """Fill a thick line whose width, in pixels, goes from one value to another."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = max(hypot(dx, dy), 1e-6)
        nx, ny = -dy / length / 2, dx / length / 2
        a, b = widths
        self.polygon(
            [
                (start[0] + nx * a, start[1] + ny * a),
                (end[0] + nx * b, end[1] + ny * b),
                (end[0] - nx * b, end[1] - ny * b),
                (start[0] - nx * a, start[1] - ny * a),
            ],
            light,
        )

    def stamp(self, depth: float) -> "Stamp":
        """The finished drawing, with a little grain."""
        light = (np.asarray(self._picture, np.float32) / 255) ** 2 * BRIGHTEST
        y = np.arange(self.top, self.bottom, dtype=np.float32)[:, None] / self._unit
        x = np.arange(self.left, self.right, dtype=np.float32)[None, :] / self._unit
        grain = look(fine(), x, y) - 0.5
        light = light * (1 + 0.16 * grain[..., None])
        return Stamp(self.top, self.left, light, np.asarray(self._shape, bool), depth)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A picture with a shape at a place: light [h, w, 3], shape bool [h, w], depth in metres."""

    top: int
    left: int
    light: FloatArray
    shape: NDArray[np.bool_]
    depth: float

    def put(self, scene: Scene, canvas: Canvas, label: int) -> None:
        """Put it on the canvas, seen through the haze, wherever nothing nearer is there."""
        height, width = self.shape.shape
        window = (
            slice(self.top, self.top + height),
            slice(self.left, self.left + width),
        )
        seen = self.shape & (canvas.depth[window] > self.depth)
        far = np.full(1, self.depth, np.float32)
        canvas.colour[window][seen] = hazed(scene, self.light[seen], far)
        canvas.label[window][seen] = label
        canvas.depth[window][seen] = self.depth


def ring(centre: Point, radii: Point, count: int = 24) -> list[Point]:
    """Corners of a polygon that stands for an upright ellipse."""
    angle = np.arange(count) * (2 * np.pi / count)
    x, y = centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)
    return list(zip(x.tolist(), y.tolist(), strict=True))
