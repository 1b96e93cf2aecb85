"""Buildings: which wall or roof each pixel sees, and where on it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segcore.datasets.streets.facade import shade_facades
from segcore.datasets.streets.noise import FloatArray
from segcore.datasets.streets.scene import BUILDING, Building, Scene
from segcore.datasets.streets.view import Canvas, View, hazed

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


def _vector(x: float, y: float, z: float) -> FloatArray:
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
    along, out, up = _vector(ax, 0, az), _vector(ox, 0, oz), _vector(0, 1, 0)
    corner = _vector(x, 0, z)
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


def paint_buildings(scene: Scene, view: View, canvas: Canvas) -> None:
    """Draw all buildings, far ones first, and shade what stays visible."""
    eye = _vector(scene.camera.x, scene.camera.height, 0)
    order = sorted(range(len(scene.buildings)), key=lambda i: -scene.buildings[i].corner[1])
    faces: list[Face] = []
    picture = Image.new("I", (view.width, view.height), 0)
    pen = ImageDraw.Draw(picture)
    for index in order:
        for face in faces_of(scene.buildings[index], index):
            outline = view.outline(face.points())
            if outline and float(face.normal @ (eye - face.origin)) > 0:
                faces.append(face)
                pen.polygon(outline, fill=len(faces))
    seen = np.asarray(picture, np.int32)
    rows, columns = np.nonzero(seen)
    if rows.size == 0:
        return
    which = seen[rows, columns] - 1
    u, v, depth = _locate(faces, which, eye, view, rows, columns)
    light = shade_facades(scene, faces, which, u, v, depth / view.focal)
    canvas.colour[rows, columns] = hazed(scene, light, depth)
    canvas.label[rows, columns] = BUILDING
    canvas.depth[rows, columns] = depth


def _locate(
    faces: list[Face],
    which: NDArray[np.int32],
    eye: FloatArray,
    view: View,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Meet the pixels' rays with their faces: metres across, metres up, depth, each [P]."""
    rays = np.stack(
        [
            (columns + 0.5 - view.width / 2) / view.focal,
            (view.horizon - rows - 0.5) / view.focal,
            np.ones(rows.size),
        ],
        axis=1,
    ).astype(np.float32)
    away = np.stack([face.origin - eye for face in faces])
    normal = np.stack([face.normal for face in faces])
    across = np.stack([face.across for face in faces])
    up = np.stack([face.up for face in faces])
    gap = (away * normal).sum(1)
    slant = np.einsum("pc,pc->p", rays, normal[which])
    depth = gap[which] / np.where(np.abs(slant) < 1e-6, -1e-6, slant)
    depth = np.clip(depth, 0.3, 400)
    u = depth * np.einsum("pc,pc->p", rays, across[which]) - (away * across).sum(1)[which]
    v = depth * np.einsum("pc,pc->p", rays, up[which]) - (away * up).sum(1)[which]
    return u, v, depth
