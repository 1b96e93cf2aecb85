"""Invents scenes: every choice is drawn from the seed, the split and the index alone."""

from dataclasses import replace

import numpy as np

from segcore.datasets.streets.placing import place_things
from segcore.datasets.streets.scene import (
    RGB,
    Building,
    Camera,
    Light,
    Scene,
    Side,
    Street,
)

SPLIT_CODES = {"train": 0, "val": 1, "test": 2, "unlabelled": 3}
MOODS = ("day", "golden", "overcast", "dusk")

WALLS: tuple[RGB, ...] = (
    (0.62, 0.55, 0.44),
    (0.55, 0.50, 0.46),
    (0.60, 0.42, 0.28),
    (0.46, 0.50, 0.52),
    (0.66, 0.60, 0.36),
    (0.42, 0.47, 0.36),
    (0.56, 0.36, 0.30),
    (0.34, 0.40, 0.48),
    (0.70, 0.68, 0.63),
)
BRICKS: tuple[RGB, ...] = (
    (0.36, 0.14, 0.09),
    (0.30, 0.17, 0.12),
    (0.42, 0.24, 0.15),
    (0.24, 0.13, 0.10),
)
PANELS: tuple[RGB, ...] = ((0.34, 0.35, 0.36), (0.22, 0.24, 0.27), (0.46, 0.44, 0.40))
TILES: tuple[RGB, ...] = (
    (0.30, 0.11, 0.07),
    (0.20, 0.09, 0.06),
    (0.13, 0.13, 0.14),
    (0.24, 0.20, 0.17),
)


def compose(seed: int, split: str, index: int) -> Scene:
    """Invent one scene.

    Args:
        seed: of the dataset.
        split: a key of SPLIT_CODES.
        index: of the scene in its split.
    """
    rng = np.random.default_rng([seed, SPLIT_CODES[split], index])
    camera = _camera(rng)
    light = _light(rng)
    camera = replace(camera, exposure=camera.exposure * (1.35 if light.mood == "dusk" else 1.0))
    street = _street(rng)
    lane = rng.choice([0.5, 0.5, 0.15, -0.1, 1.0])
    camera = replace(camera, x=float(lane * street.half_width + (lane == 1.0) * 0.8))
    towns = ("city", "houses", "mixed")
    town = towns[int(rng.choice(3, p=[0.42, 0.33, 0.25]))]
    buildings = (
        *_row(rng, street, town, right=False),
        *_row(rng, street, town, right=True),
    )
    things = place_things(rng, camera, street, buildings, _autumn(rng))
    return Scene(int(rng.integers(1 << 31)), camera, light, street, buildings, things)


def _autumn(rng: np.random.Generator) -> float:
    """How far the leaves have turned, 0..1; mostly not at all."""
    return float(rng.random() < 0.2) * float(rng.uniform(0.3, 1.0))


def _camera(rng: np.random.Generator) -> Camera:
    warm = rng.normal(0, 0.045)
    return Camera(
        x=0.0,
        height=float(rng.uniform(1.7, 2.9)),
        focal=float(rng.uniform(1.12, 1.42)),
        horizon=float(rng.uniform(0.40, 0.52)),
        exposure=float(np.exp(rng.normal(0, 0.13))),
        balance=(1 + warm, 1.0 + float(rng.normal(0, 0.012)), 1 - warm),
        noise=float(rng.uniform(0.004, 0.018)),
        vignette=float(rng.uniform(0.08, 0.3)),
    )


def _light(rng: np.random.Generator) -> Light:
    """Draw a mood and the light that belongs to it."""
    mood = MOODS[int(rng.choice(4, p=[0.48, 0.24, 0.15, 0.13]))]
    azimuth = float(rng.uniform(-np.pi, np.pi))
    if mood == "day":
        sun, ambient = (1.18, 1.08, 0.92), (0.34, 0.40, 0.50)
        zenith, horizon = (0.10, 0.26, 0.62), (0.56, 0.72, 0.90)
        rise, haze, clouds, lamps = rng.uniform(0.55, 1.05), 750.0, rng.uniform(0.1, 0.8), 0.0
    elif mood == "golden":
        sun, ambient = (1.42, 0.94, 0.52), (0.33, 0.34, 0.43)
        zenith, horizon = (0.16, 0.28, 0.52), (0.95, 0.66, 0.40)
        azimuth = float(rng.choice([-1, 1])) * float(rng.uniform(0.1, 1.5))
        rise, haze, clouds, lamps = rng.uniform(0.2, 0.42), 380.0, rng.uniform(0.2, 0.75), 0.1
    elif mood == "overcast":
        sun, ambient = (0.10, 0.10, 0.10), (0.66, 0.69, 0.73)
        zenith, horizon = (0.46, 0.51, 0.58), (0.70, 0.73, 0.76)
        rise, haze, clouds, lamps = rng.uniform(0.7, 1.2), 330.0, rng.uniform(0.8, 1.0), 0.12
    else:
        sun, ambient = (0.16, 0.10, 0.09), (0.17, 0.19, 0.30)
        zenith, horizon = (0.035, 0.06, 0.19), (0.55, 0.30, 0.24)
        azimuth = float(rng.uniform(-0.9, 0.9))
        rise, haze, clouds, lamps = 0.08, 420.0, rng.uniform(0.2, 0.7), 0.65
    flat = float(np.cos(rise))
    direction = (np.sin(azimuth) * flat, float(np.sin(rise)), np.cos(azimuth) * flat)
    return Light(
        mood,
        _jitter(rng, ambient, 0.06),
        _jitter(rng, sun, 0.08),
        (float(direction[0]), direction[1], float(direction[2])),
        _jitter(rng, zenith, 0.1),
        _jitter(rng, horizon, 0.06),
        haze * float(rng.uniform(0.7, 1.5)),
        float(clouds),
        (float(rng.random()), float(rng.random())),
        lamps,
    )


def _jitter(rng: np.random.Generator, base: RGB, amount: float) -> RGB:
    """Vary a colour in brightness and, less, in hue."""
    value = np.asarray(base) * np.exp(rng.normal(0, amount)) * np.exp(rng.normal(0, amount / 2, 3))
    r, g, b = (float(channel) for channel in np.clip(value, 0, 2))
    return r, g, b


def _pick(rng: np.random.Generator, colours: tuple[RGB, ...], amount: float = 0.1) -> RGB:
    return _jitter(rng, colours[int(rng.integers(len(colours)))], amount)


def _street(rng: np.random.Generator) -> Street:
    bend = float(rng.choice([0.0, 1.0], p=[0.35, 0.65])) * float(rng.uniform(-0.004, 0.004))
    sides = []
    for _ in range(2):
        park = bool(rng.random() < 0.2)
        verge = float(rng.choice([0.0, rng.uniform(1.2, 2.4)], p=[0.4, 0.6]))
        lawn = float(rng.uniform(0.8, 5.0)) if rng.random() < 0.75 else 0.0
        sides.append(Side(verge, float(rng.uniform(1.8, 3.2)), lawn, park))
    grey = _jitter(rng, (0.115, 0.115, 0.12), 0.12)
    return Street(
        heading=float(rng.normal(0, 0.03)),
        bend=bend,
        half_width=float(rng.uniform(3.4, 5.5)),
        left=sides[0],
        right=sides[1],
        asphalt=grey,
        paving=_jitter(rng, (0.30, 0.285, 0.26), 0.12),
        grass=_jitter(rng, (0.105, 0.175, 0.045), 0.16),
        dashed=bool(rng.random() < 0.7),
        zebra=float(rng.uniform(9, 20)) if rng.random() < 0.3 else 0.0,
        hills=bool(rng.random() < 0.5),
    )


def _row(rng: np.random.Generator, street: Street, town: str, *, right: bool) -> list[Building]:
    """Line up buildings along one side of the street, from behind the camera into the haze."""
    side = street.side(right)
    sign = 1.0 if right else -1.0
    if side.park:
        return []
    result: list[Building] = []
    z = float(rng.uniform(-14, -4))
    base = street.half_width + 0.3 + side.verge + side.pavement + side.lawn
    while z < 150:
        house = town == "houses" or (town == "mixed" and bool(rng.random() < 0.5))
        length = float(rng.uniform(8, 14) if house else rng.uniform(11, 22))
        slope = street.slope(z + length / 2)
        norm = float(np.hypot(1, slope))
        along = (slope / norm, 1 / norm)
        outward = (sign * along[1], -sign * along[0])
        away = sign * (base + float(rng.uniform(0, 0.8 if house else 0.3)))
        start = float(street.centre(np.asarray(max(z, 0.0), np.float32))) + slope * min(z, 0.0)
        result.append(_building(rng, house, length, (start + away, z), along, outward))
        gap = rng.uniform(2.5, 7) if house else float(rng.random() < 0.25) * rng.uniform(2, 9)
        z += length * along[1] + float(gap)
    return result


def _building(
    rng: np.random.Generator,
    house: bool,
    length: float,
    corner: tuple[float, float],
    along: tuple[float, float],
    outward: tuple[float, float],
) -> Building:
    material = int(rng.choice(3, p=[0.6, 0.4, 0.0] if house else [0.42, 0.33, 0.25]))
    storey = float(rng.uniform(2.7, 3.1) if house else rng.uniform(3.0, 3.7))
    floors = int(rng.integers(1, 3) if house else rng.integers(2, 7))
    shop = bool(not house and rng.random() < 0.45)
    gabled = house or (material != 2 and floors < 5 and bool(rng.random() < 0.45))
    depth = float(rng.uniform(7, 10) if house else rng.uniform(10, 14))
    window = (rng.uniform(0.36, 0.55), rng.uniform(0.42, 0.6))
    if material == 2:
        window = (rng.uniform(0.75, 0.95), rng.uniform(0.5, 0.75))
    wall = _pick(rng, (WALLS, BRICKS, PANELS)[material])
    trim: RGB = _jitter(rng, (0.68, 0.66, 0.62), 0.1)
    if rng.random() < 0.3:
        trim = _jitter(rng, (0.2, 0.19, 0.18), 0.2)
    return Building(
        corner,
        along,
        outward,
        length,
        depth,
        floors * storey + (3.7 if shop else 0.0) + 0.6,
        float(rng.uniform(0.22, 0.42)) * depth if gabled else 0.0,
        wall,
        trim,
        _pick(rng, TILES, 0.15),
        material,
        float(rng.uniform(2.3, 3.6)),
        storey,
        (float(window[0]), float(window[1])),
        shop,
        int(rng.integers(1 << 20)),
    )
