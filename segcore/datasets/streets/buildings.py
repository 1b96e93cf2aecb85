"""Buildings: which wall or roof each pixel sees, and where on it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segcore.datasets.streets.facade import shade_facades
from segcore.datasets.streets.faces import Face, faces_of, vector
from segcore.datasets.streets.noise import FloatArray
from segcore.datasets.streets.scene import BUILDING, Scene
from segcore.datasets.streets.view import Canvas, View, hazed


def paint_buildings(scene: Scene, view: View, canvas: Canvas) -> None:
    """Draw all buildings, far ones first, and shade what stays visible."""
    eye = vector(scene.camera.x, scene.camera.height, 0)
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
