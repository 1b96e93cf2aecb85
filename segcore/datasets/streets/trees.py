"""Trees: a trunk with boughs, and a crown of round masses broken up by noise into leaves."""

import numpy as np

from segcore.datasets.streets.noise import FloatArray, fine, look, smooth, tile
from segcore.datasets.streets.scene import Scene, Tree
from segcore.datasets.streets.sprite import Sprite, Stamp
from segcore.datasets.streets.view import View, colour

COARSE = 72


def paint_tree(scene: Scene, view: View, tree: Tree) -> list[Stamp]:
    """Draw one tree: its crown hides what it covers of the trunk."""
    if tree.z < 1.0:
        return []
    foot = view.project(np.asarray([(tree.x, 0, tree.z)], np.float32))[0]
    scale = view.focal / tree.z
    x, y = float(foot[0]), float(foot[1])
    blobs = _blobs(tree)
    place = (x, y, scale)
    return [*_trunk(scene, view, tree, place, blobs), *_crown(scene, view, tree, place, blobs)]


def _blobs(tree: Tree) -> FloatArray:
    """Spheres (x, y, z, radius) [B, 4] in metres from the foot that make up the crown."""
    rng = np.random.default_rng(tree.seed)
    r, h = tree.radius, tree.height
    if tree.shape == "conifer":
        level = np.linspace(0.12, 0.97, 13)
        size = r * (1.03 - level) * rng.uniform(0.75, 1.05, 13)
        spread = rng.uniform(-0.3, 0.3, 13) * size
        return np.stack([spread, level * h, 0 * size, 0.25 * r + 0.62 * size], 1).astype(np.float32)
    if tree.shape == "poplar":
        level = np.linspace(0.2, 0.93, 12)
        size = r * (0.55 + 0.5 * np.sin(np.pi * np.clip(level, 0.1, 0.95)))
        spread = rng.uniform(-0.25, 0.25, 12) * r
        return np.stack([spread, level * h, 0 * size, size * 0.75], 1).astype(np.float32)
    count = 15
    angle = rng.uniform(0, 2 * np.pi, count)
    away = np.sqrt(rng.random(count)) * 0.66
    middle = h - r
    x = np.cos(angle) * away * r
    y = middle + np.sin(angle) * away * r * 0.85
    z = rng.uniform(-0.5, 0.5, count) * r
    size = rng.uniform(0.34, 0.5, count) * r
    blobs = np.stack([x, y, z, size], 1)
    blobs[0] = (0, middle, -0.2 * r, 0.66 * r)
    return blobs.astype(np.float32)


def _trunk(
    scene: Scene,
    view: View,
    tree: Tree,
    place: tuple[float, float, float],
    blobs: FloatArray,
) -> list[Stamp]:
    """A tapering trunk, lit on one side, with a few boughs into the crown."""
    x, y, scale = place
    top = float(blobs[:, 1].mean()) * scale
    wide = (0.16 + 0.022 * tree.height) * scale
    half = tree.radius * scale
    sprite = Sprite(view, [(x - half, y - top - half), (x + half, y + 1)])
    light, bark = scene.light, colour(tree.bark)
    shade = bark * (colour(light.ambient) * 0.7 + colour(light.sun) * 0.08)
    sun = bark * (colour(light.ambient) * 0.8 + colour(light.sun) * 0.6)
    sprite.limb((x, y), (x, y - 0.25 * wide), (wide * 1.7, wide * 1.1), shade)
    sprite.limb((x, y), (x, y - top), (wide * 1.15, wide * 0.6), shade)
    if tree.shape == "round":
        for bx, by, _, _ in blobs[1:5]:
            end = (x + float(bx) * scale * 0.8, y - float(by) * scale)
            sprite.limb((x, y - top * 0.55), end, (wide * 0.5, wide * 0.2), shade)
    side = np.sign(light.direction[0]) * wide * 0.25
    sprite.limb((x + side, y), (x + side, y - top), (wide * 0.5, wide * 0.25), sun)
    return [] if sprite.empty else [sprite.stamp(tree.z + 0.05)]


def _crown(
    scene: Scene,
    view: View,
    tree: Tree,
    place: tuple[float, float, float],
    blobs: FloatArray,
) -> list[Stamp]:
    """Shade the crown's spheres, cut its outline and gaps by noise, paste it."""
    x, y, scale = place
    low, high = blobs[:, :2] - blobs[:, 3:], blobs[:, :2] + blobs[:, 3:]
    margin = 0.25 * tree.radius
    left, right = float(low[:, 0].min()) - margin, float(high[:, 0].max()) + margin
    bottom, top = float(low[:, 1].min()) - margin, float(high[:, 1].max()) + margin
    height, width = view.height, view.width
    x0, x1 = max(0, int(x + left * scale)), min(width, int(x + right * scale) + 1)
    y0, y1 = max(0, int(y - top * scale)), min(height, int(y - bottom * scale) + 1)
    if x1 <= x0 or y1 <= y0:
        return []
    u = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - x) / scale)[None, :]
    v = ((y - np.arange(y0, y1, dtype=np.float32) - 0.5) / scale)[:, None]
    grid_u = np.linspace(left, right, COARSE, dtype=np.float32)
    grid_v = np.linspace(bottom, top, COARSE, dtype=np.float32)
    field, facing = _relief(scene, tree, blobs, grid_u[None, :], grid_v[:, None])
    across = (u - left) / (right - left) * (COARSE - 1) + 0 * v
    upward = (v - bottom) / (top - bottom) * (COARSE - 1) + 0 * u
    shift = (tree.seed % 997) / 997
    leaf = look(fine(), u / 5.5 + shift + 0 * v, v / 5.5 + 0 * u) - 0.5
    tuft = smooth(tile(4, 8, 0.75), u / 9 + shift + 0 * v, v / 9 + 0 * u) - 0.5
    ragged = 0.34 * tuft + 0.14 * leaf * np.clip(1.5 - 1 / (scale * 0.12), 0, 1)
    shape = _resample(field, across, upward) + ragged > 0
    light = _foliage(scene, tree, _resample(facing, across, upward), leaf, tuft)
    return [Stamp(y0, x0, light, shape, tree.z)]


def _relief(
    scene: Scene, tree: Tree, blobs: FloatArray, u: FloatArray, v: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """On a coarse grid: how far inside the crown (> 0), and the cosine to the sun, [G, G]."""
    dx = (u[None] - blobs[:, 0, None, None]) / blobs[:, 3, None, None]
    dy = (v[None] - blobs[:, 1, None, None]) / blobs[:, 3, None, None]
    inside = 1 - dx * dx - dy * dy
    bulge = np.sqrt(np.maximum(inside, 0))
    front = np.where(inside > 0, bulge * blobs[:, 3, None, None] - blobs[:, 2, None, None], -99)
    nearest = front.argmax(0)[None]
    sx, sy, sz = scene.light.direction
    cosine = dx * sx + dy * sy - bulge * sz
    facing = np.take_along_axis(cosine, nearest, 0)[0]
    middle = blobs[:, 1].mean()
    whole = ((u * sx + (v - middle) * sy) / max(tree.radius, 0.5)).clip(-1, 1)
    field = inside.max(0).clip(-1.5, 1)
    return field, np.asarray(0.6 * facing.clip(-1, 1) + 0.5 * whole, np.float32)


def _resample(grid: FloatArray, across: FloatArray, upward: FloatArray) -> FloatArray:
    """Read a grid bilinearly at fractional columns and rows within it."""
    column = np.clip(across.astype(np.int32), 0, COARSE - 2)
    row = np.clip(upward.astype(np.int32), 0, COARSE - 2)
    s, t = across - column, upward - row
    low = grid[row, column] * (1 - s) + grid[row, column + 1] * s
    high = grid[row + 1, column] * (1 - s) + grid[row + 1, column + 1] * s
    return np.asarray(low * (1 - t) + high * t, np.float32)


def _foliage(
    scene: Scene, tree: Tree, facing: FloatArray, leaf: FloatArray, tuft: FloatArray
) -> FloatArray:
    """Light of leaves: sun where they face it, some of it through them, dark between them."""
    light = scene.light
    sun = np.clip(facing * 0.75 + 0.25 + 0.7 * tuft + 0.35 * leaf, 0.02, 1.2)
    sky = np.clip(0.55 + 0.35 * facing + 1.1 * tuft + 0.9 * leaf, 0.15, 1.3)
    leaves = colour(tree.leaves)
    warm = leaves * np.asarray((1.12, 1.05, 0.75), np.float32)
    result = leaves * colour(light.ambient) * sky[..., None]
    return np.asarray(result + warm * colour(light.sun) * (0.85 * sun[..., None]), np.float32)
