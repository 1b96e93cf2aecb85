"""Sky, clouds, sun, and what stands on the horizon."""

import numpy as np

from segcore.datasets.streets.noise import FloatArray, smooth, smoothstep, tile
from segcore.datasets.streets.scene import BUILDING, GRASS, SKY, Scene
from segcore.datasets.streets.view import Canvas, View, colour, hazed

FAR = 180.0


def paint_sky(scene: Scene, view: View, canvas: Canvas) -> None:
    """Fill everything above the horizon, and one row below it, with sky."""
    bottom = min(view.height, int(view.horizon) + 2)
    dx, dy = view.rays(0, bottom)
    light = scene.light
    rise = np.maximum(dy, 0)
    blend = (1 - np.exp(-rise * 4.5))[..., None]
    sky = colour(light.horizon) * (1 - blend) + colour(light.zenith) * blend
    length = np.sqrt(dx * dx + dy * dy + 1)
    sx, sy, sz = light.direction
    cosine = np.clip((dx * sx + dy * sy + sz) / length, 0, 1)
    clear = 1 - 0.9 * light.clouds if light.mood == "overcast" else 1.0
    glow = 0.25 * cosine**6 + 0.6 * cosine**60 + 6.0 * smoothstep(0.9988, 0.9996, cosine)
    sky = sky + (glow * clear)[..., None] * colour(light.sun) * 0.5
    cover, shade = _clouds(scene, dx, rise)
    bright = colour(light.sun) * 0.45 + colour(light.horizon) * 0.6
    dark = colour(light.ambient) * 0.75 + colour(light.horizon) * 0.15
    lining = (1 + 0.7 * cosine**8)[..., None]
    cloud = (bright * (1 - shade[..., None]) + dark * shade[..., None]) * lining
    cover = cover[..., None]
    canvas.colour[:bottom] = sky * (1 - cover) + cloud * cover
    canvas.label[:bottom] = SKY


def _clouds(scene: Scene, dx: FloatArray, rise: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cover and self-shadow of a layer of clouds seen from below, both [rows, W] in 0..1."""
    light = scene.light
    u0, v0 = light.offset
    scale = 0.11 / (rise + 0.09)
    u, v = dx * scale + u0, scale * 0.9 + v0
    noise = tile(2, 7, 0.55)
    density = smooth(noise, u, v)
    towards = smooth(noise, u + 0.012 * np.sign(light.direction[0]), v - 0.012)
    floor = 0.78 - 0.5 * light.clouds
    cover = smoothstep(floor, floor + 0.22, density) * smoothstep(0.0, 0.06, rise)
    shade = np.clip(0.35 + 2.2 * (towards - density) + 0.9 * (density - floor), 0, 1)
    return cover, shade


def paint_horizon(scene: Scene, view: View, canvas: Canvas) -> None:
    """Put hills (grass) or a skyline (building) in front of the sky."""
    rng = np.random.default_rng(scene.seed)
    dx, _ = view.rays(0, 1)
    x = dx[0]
    if scene.street.hills:
        phase = rng.random(4) * 6.28
        rise = 0.028 + 0.012 * np.sin(x * 3.1 + phase[0]) + 0.010 * np.sin(x * 7.3 + phase[1])
        rise += 0.0025 * np.sin(x * 31 + phase[2]) + 0.0015 * np.sin(x * 83 + phase[3])
        albedo, label = colour(scene.street.grass) * 0.55, GRASS
    else:
        edges = np.cumsum(rng.uniform(0.02, 0.09, 120)) - 3
        heights = rng.uniform(0.008, 0.06, 121) * rng.choice([1.0, 1.0, 1.7], 121)
        rise = heights[np.searchsorted(edges, x)]
        albedo, label = np.full(3, rng.uniform(0.14, 0.3), np.float32), BUILDING
    top = np.round(view.horizon - rise * view.focal)
    bottom = min(view.height, int(view.horizon) + 2)
    mask = np.arange(bottom)[:, None] >= top[None, :]
    light = colour(scene.light.ambient) + 0.35 * colour(scene.light.sun)
    far = np.full(1, FAR, np.float32)
    canvas.colour[:bottom][mask] = hazed(scene, (albedo * light)[None, :], far)
    canvas.label[:bottom][mask] = label
