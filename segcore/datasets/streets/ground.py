"""The ground plane: carriageway with markings, kerbs, pavements, grass."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.datasets.streets.noise import FloatArray, fine, look, smooth, smoothstep, tile
from segcore.datasets.streets.scene import GRASS, ROAD, Scene
from segcore.datasets.streets.view import Canvas, View, colour, hazed, lit

PAINT = np.asarray((0.72, 0.71, 0.66), np.float32)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the rays below the horizon meet the ground, all [rows, W].

    Args:
        x, z: world position in metres.
        s: metres right of the middle of the road.
        pixel: width in metres of a pixel at z.
    """

    x: FloatArray
    z: FloatArray
    s: FloatArray
    pixel: FloatArray


def paint_ground(
    scene: Scene, view: View, canvas: Canvas, sunless: FloatArray, dark: FloatArray
) -> None:
    """Fill everything below the horizon that no building hides.

    Args:
        sunless: [H, W] in 0..1, share of the sun that something keeps off.
        dark: [H, W] in 0..1, share of the sky that something near keeps off.
    """
    top = int(view.horizon) + 1
    dx, dy = view.rays(top, view.height)
    z = np.minimum(scene.camera.height / np.maximum(-dy, 1e-4), 600) + 0 * dx
    x = scene.camera.x + dx * z
    ground = Ground(x, z, x - scene.street.centre(z), z / view.focal)
    albedo, label = _asphalt(scene, ground), np.full(z.shape, ROAD, np.int32)
    _mark(scene, ground, albedo)
    paving, paved = _paving(scene, ground)
    albedo = np.where(paved[..., None], paving, albedo)
    green = _green(scene, ground)
    albedo = np.where(green[..., None], _grass(scene, ground), albedo)
    label[green] = GRASS
    up = np.asarray((0, 1, 0), np.float32)
    full = lit(scene.light, albedo, up)
    shade = albedo * colour(scene.light.ambient)
    part = sunless[top:, :, None]
    light = (full * (1 - part) + shade * part) * (1 - 0.75 * dark[top:, :, None])
    light += _sheen(scene, dx, dy)[..., None] * colour(scene.light.sun) * ~green[..., None]
    free = np.isinf(canvas.depth[top:])
    canvas.colour[top:][free] = hazed(scene, light, z)[free]
    canvas.label[top:][free] = label[free]


def _sheen(scene: Scene, dx: FloatArray, dy: FloatArray) -> FloatArray:
    """Glare of a low sun on the road, [rows, W]."""
    sx, sy, sz = scene.light.direction
    cosine = (dx * sx - dy * sy + sz) / np.sqrt(dx * dx + dy * dy + 1)
    return np.asarray(0.16 * np.clip(cosine, 0, 1) ** 24, np.float32)


def _fade(ground: Ground, size: float) -> FloatArray:
    """Weight of detail of a given size in metres: 0 where pixels are too coarse for it."""
    return np.asarray(np.clip(1.4 - ground.pixel / size, 0, 1))


def _asphalt(scene: Scene, ground: Ground) -> FloatArray:
    """Albedo of the carriageway: grain, patches, and lanes polished by wheels."""
    grain = look(fine(), ground.x / 3.1, ground.z / 3.1) - 0.5
    patch = smooth(tile(), ground.s / 19, ground.z / 57) - 0.5
    lane = np.abs(np.abs(ground.s) - scene.street.half_width / 2)
    worn = np.exp(-(((lane - 0.75) / 0.35) ** 2))
    crack = np.abs(smooth(tile(2, 6), ground.s / 11 + 0.3, ground.z / 23) - 0.5)
    crack = (1 - smoothstep(0.0, 0.012, crack)) * _fade(ground, 0.08)
    tone = 1 + 0.55 * grain * _fade(ground, 0.05) + 0.8 * patch - 0.1 * worn - 0.3 * crack
    return colour(scene.street.asphalt) * tone[..., None]


def _mark(scene: Scene, ground: Ground, albedo: FloatArray) -> None:
    """Put lane markings and the zebra crossing on the asphalt, in place."""
    street, s, z = scene.street, ground.s, ground.z
    soft = np.maximum(ground.pixel, 0.02)
    line = np.clip((0.08 - np.abs(s)) / soft + 0.5, 0, 1)
    if street.dashed:
        line = line * ((z % 6.0) < 3.0)
    edge = np.abs(np.abs(s) - (street.half_width - 0.35))
    line = np.maximum(line, 0.85 * np.clip((0.06 - edge) / soft + 0.5, 0, 1))
    if street.zebra > 0:
        across = np.abs(z - street.zebra) < 1.5
        stripes = np.clip((0.26 - np.abs((s + 100) % 1.04 - 0.52)) / soft + 0.5, 0, 1)
        inside = across & (np.abs(s) < street.half_width - 0.3)
        line = np.where(inside, stripes, np.where(np.abs(z - street.zebra) < 2.2, 0, line))
    wear = smooth(tile(4, 8), s / 5, z / 9)
    line = (line * (0.55 + 0.6 * wear)).clip(0, 0.92)[..., None]
    albedo[...] = albedo * (1 - line) + PAINT * line


def _paving(scene: Scene, ground: Ground) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Albedo of kerbs and pavements, and where they are (grass is put over it later)."""
    street = scene.street
    beyond = np.abs(ground.s) - street.half_width
    slab = (np.floor(ground.s / 0.6) * 7 + np.floor(ground.z / 0.9) * 13) % 5 / 5 - 0.4
    joint = np.minimum(np.abs(ground.s % 0.6 - 0.3), np.abs(ground.z % 0.9 - 0.45) * 0.8)
    joint = smoothstep(0.27, 0.3, joint) * _fade(ground, 0.06)
    grain = look(fine(), ground.x / 2.3, ground.z / 2.3) - 0.5
    stain = smooth(tile(), ground.x / 13, ground.z / 13) - 0.5
    tone = 1 + (0.14 * slab + 0.4 * grain) * _fade(ground, 0.12) - 0.3 * joint + 0.5 * stain
    kerb = (beyond < 0.22).astype(np.float32)
    gutter = 1 - 0.45 * np.exp(-((np.minimum(beyond, 0) / 0.12) ** 2)) * (beyond < 0.02)
    tone = tone * gutter + 0.22 * kerb
    return colour(street.paving) * tone[..., None], beyond > -0.02


def _green(scene: Scene, ground: Ground) -> NDArray[np.bool_]:
    """Where grass grows: on the verge, and beyond the pavement."""
    street = scene.street
    ragged = (look(tile(4, 8), ground.x / 4, ground.z / 4) - 0.5) * 0.18 * _fade(ground, 0.2)
    beyond = np.abs(ground.s) - street.half_width + ragged
    green = np.zeros(ground.s.shape, bool)
    crossing = (street.zebra > 0) & (np.abs(ground.z - street.zebra) < 1.6)
    for side, here in ((street.left, ground.s < 0), (street.right, ground.s >= 0)):
        verge = (beyond > 0.3) & (beyond < 0.3 + side.verge) & ~crossing
        outer = beyond > 0.3 + side.verge + side.pavement
        green |= here & (verge | outer)
    return green


def _grass(scene: Scene, ground: Ground) -> FloatArray:
    """Albedo of grass: blades, tufts, dry patches, mown stripes far off."""
    blade = look(fine(), ground.x / 2.7, ground.z / 5.5) - 0.5
    tuft = smooth(tile(4, 9, 0.75), ground.x / 7, ground.z / 11) - 0.5
    dry = smoothstep(0.5, 0.85, smooth(tile(), ground.x / 31 + 0.4, ground.z / 31))
    tone = 1 + 1.1 * blade * _fade(ground, 0.1) + 1.1 * tuft * _fade(ground, 1.2)
    base = colour(scene.street.grass)
    straw = np.asarray((0.30, 0.25, 0.11), np.float32)
    mixed = base * (1 - 0.55 * dry[..., None]) + straw * (0.55 * dry[..., None])
    return np.asarray(mixed * tone[..., None], np.float32)
