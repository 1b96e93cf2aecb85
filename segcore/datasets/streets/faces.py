"""The flat faces of buildings in space."""

from dataclasses import dataclass

import numpy as np

from segcore.datasets.streets.noise import FloatArray
from segcore.datasets.streets.scene import Building

FRONT, END, ROOF = range(3)


@dataclass(frozen=True, slots=True)
class Face:
    """A flat polygon in space.

    Args:
        building: index of the building.
        kind: FRONT, END or ROOF.
        origin, across, up, normal: world vectors [3]; all but the first are unit vectors.
        corners: [K, 2] in metres along `across` and `up`.
    """

    building: int
    kind: int
    origin: FloatArray
    across: FloatArray
    up: FloatArray
    normal: FloatArray
    corners: FloatArray

    def points(self) -> FloatArray:
        """The corners in the world, [K, 3]."""
        return self.origin + self.corners[:, :1] * self.across + self.corners[:, 1:] * self.up


def vector(x: float, y: float, z: float) -> FloatArray:
    """A point or direction in the world."""
    return np.asarray((x, y, z), np.float32)


def _corners(width: float, height: float, peak: float = 0.0) -> FloatArray:
    """A rectangle, or with a peak in the middle of its upper edge."""
    points = [(0.0, 0.0), (width, 0.0), (width, height)]
    if peak > 0:
        points.append((width / 2, height + peak))
    return np.asarray([*points, (0.0, height)], np.float32)


def faces_of(building: Building, index: int) -> list[Face]:
    """The four walls of a building, and the two slopes of its roof if it has one."""
    (x, z), (ax, az), (ox, oz) = building.corner, building.along, building.outward
    along, out, up = vector(ax, 0, az), vector(ox, 0, oz), vector(0, 1, 0)
    corner = vector(x, 0, z)
    length, depth, height, roof = (
        building.length,
        building.depth,
        building.height,
        building.roof,
    )
    front, end = _corners(length, height), _corners(depth, height, roof)
    faces = [
        Face(index, FRONT, corner, along, up, -out, front),
        Face(index, FRONT, corner + depth * out, along, up, out, front),
        Face(index, END, corner, out, up, -along, end),
        Face(index, END, corner + length * along, out, up, along, end),
    ]
    if roof > 0:
        run = np.hypot(depth / 2, roof)
        slope = _corners(length + 0.6, float(run) + 0.4)
        for edge, inward in ((corner, out), (corner + depth * out, -out)):
            rise = (inward * (depth / 2) + up * roof) / run
            normal = (-inward * roof + up * (depth / 2)) / run
            eaves = edge + up * height - rise * 0.4 - along * 0.3
            faces.append(Face(index, ROOF, eaves, along, rise, normal, slope))
    return faces
