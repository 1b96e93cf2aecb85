"""The camera's geometry at one image size, and the canvas that the painters fill."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.datasets.streets.noise import FloatArray
from segcore.datasets.streets.scene import RGB, Camera, Light, Scene

NEAR = 0.5


class View:
    """Projection of world points to pixels of a picture of the given size, and back to rays.

    Args:
        camera: in image heights, so that the composition does not depend on the size.
        height, width: of the picture in pixels.
    """

    def __init__(self, camera: Camera, height: int, width: int) -> None:
        self.camera = camera
        self.height = height
        self.width = width
        self.focal = camera.focal * height
        self.horizon = camera.horizon * height

    def project(self, points: FloatArray) -> FloatArray:
        """Map world points [N, 3] with z > 0 to pixels (x, y) [N, 2]."""
        z = points[:, 2]
        x = self.width / 2 + (points[:, 0] - self.camera.x) / z * self.focal
        y = self.horizon - (points[:, 1] - self.camera.height) / z * self.focal
        return np.stack([x, y], axis=1)

    def outline(self, points: FloatArray) -> list[tuple[float, float]]:
        """Clip a convex polygon [N, 3] at the near plane and project what is left of it."""
        if points[:, 2].min() >= NEAR:
            return list(map(tuple, self.project(points).tolist()))
        kept: list[FloatArray] = []
        for here, there in zip(points, np.roll(points, -1, axis=0), strict=True):
            if here[2] >= NEAR:
                kept.append(here)
            if (here[2] >= NEAR) != (there[2] >= NEAR):
                kept.append(here + (there - here) * (NEAR - here[2]) / (there[2] - here[2]))
        if len(kept) < 3:
            return []
        return [(float(x), float(y)) for x, y in self.project(np.stack(kept))]

    def rays(self, top: int, bottom: int) -> tuple[FloatArray, FloatArray]:
        """Slopes dx [1, W] and dy [rows, 1] of the pixels' rays (dx, dy, 1) for some rows."""
        x = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.focal
        y = (self.horizon - np.arange(top, bottom, dtype=np.float32) - 0.5) / self.focal
        return x[None, :], y[:, None]


@dataclass(frozen=True, slots=True)
class Canvas:
    """Linear colour [H, W, 3], label (class, or len(CLASSES) + instance) and depth in metres."""

    colour: FloatArray
    label: NDArray[np.int32]
    depth: FloatArray

    @classmethod
    def blank(cls, view: View) -> "Canvas":
        size = (view.height, view.width)
        return cls(
            np.zeros((*size, 3), np.float32),
            np.zeros(size, np.int32),
            np.full(size, np.inf, np.float32),
        )


def colour(value: RGB) -> FloatArray:
    """A colour as an array [3]."""
    return np.asarray(value, np.float32)


def hazed(scene: Scene, light: FloatArray, depth: FloatArray) -> FloatArray:
    """Mix colours [..., 3] with the colour of the air between them and the camera."""
    share = np.exp(-depth / scene.light.haze)[..., None]
    air = colour(scene.light.horizon) * 0.92
    return np.asarray(light * share + air * (1 - share), np.float32)


def lit(light: Light, albedo: FloatArray, normal: FloatArray) -> FloatArray:
    """Light that matt surfaces [..., 3] with unit normals [..., 3] send back."""
    sun = np.clip(normal @ colour(light.direction), 0, None)[..., None]
    sky = 0.7 + 0.3 * normal[..., 1:2]
    return np.asarray(albedo * (colour(light.ambient) * sky + colour(light.sun) * sun), np.float32)
