"""The look of walls and roofs: plaster, brick or glass, windows, shops, tiles."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.datasets.streets.faces import FRONT, ROOF, Face
from segcore.datasets.streets.noise import FloatArray, fine, hashed, look, smooth, tile
from segcore.datasets.streets.scene import Scene
from segcore.datasets.streets.view import colour, lit

PLASTER, BRICK, PANEL = range(3)
SHOP = 3.4


@dataclass(frozen=True, slots=True)
class Spot:
    """What the pixels [P] see: position on the face, and the traits of face and building.

    Args:
        u, v: metres across and up; pixel: width of a pixel in metres.
        width, height: of the face up to the eaves, in metres.
        bay, storey, window_w, window_h, material, shop, seed: as in `Building`.
        front, roof: the face is the building's front or back; is a slope of the roof.
    """

    u: FloatArray
    v: FloatArray
    pixel: FloatArray
    width: FloatArray
    height: FloatArray
    bay: FloatArray
    storey: FloatArray
    window_w: FloatArray
    window_h: FloatArray
    material: NDArray[np.int32]
    shop: NDArray[np.bool_]
    seed: NDArray[np.int32]
    front: NDArray[np.bool_]
    roof: NDArray[np.bool_]


def shade_facades(
    scene: Scene,
    faces: list[Face],
    which: NDArray[np.int32],
    u: FloatArray,
    v: FloatArray,
    pixel: FloatArray,
) -> FloatArray:
    """Light [P, 3] that the pixels see, given their face and the place on it in metres."""
    spot = _spot(scene, faces, which, u, v, pixel)
    owners = [scene.buildings[face.building] for face in faces]
    wall = np.asarray([b.wall for b in owners], np.float32)[which]
    trim = np.asarray([b.trim for b in owners], np.float32)[which]
    tiles = np.asarray([b.tiles for b in owners], np.float32)[which]
    normal = np.stack([face.normal for face in faces])
    albedo = wall * _wall_tone(spot)[:, None]
    cornice = (spot.v > spot.height - 0.45) & (spot.v < spot.height + 0.01) & ~spot.roof
    base = (spot.v < 0.7) & ~spot.shop
    albedo = np.where(cornice[:, None], trim, albedo)
    albedo = np.where(base[:, None], albedo * 0.7, albedo)
    albedo = np.where(spot.roof[:, None], tiles * _tile_tone(spot)[:, None], albedo)
    light = lit(scene.light, albedo, normal[which])
    light = _windows(scene, spot, light, lit(scene.light, trim, normal[which]))
    under = np.clip((spot.height - 0.45 - spot.v) / 0.5, 0, 1)
    shadow = np.where((under < 1) & (under > 0) & ~spot.roof, 0.6 + 0.4 * under, 1)
    ground = np.where(spot.roof, 1, 0.72 + 0.28 * np.clip(spot.v / 2.5, 0, 1))
    return np.asarray(light * (shadow * ground)[:, None], np.float32)


def _spot(
    scene: Scene,
    faces: list[Face],
    which: NDArray[np.int32],
    u: FloatArray,
    v: FloatArray,
    pixel: FloatArray,
) -> Spot:
    """Look up the traits of each pixel's face; bays are stretched to fill the face."""
    rows = []
    for face in faces:
        b = scene.buildings[face.building]
        width = float(face.corners[:, 0].max())
        height = float(face.corners[:, 1].max()) if face.kind == ROOF else b.height
        base = SHOP + 0.3 if b.shop else 0.0
        floors = max(1, round((b.height - base - 0.5) / b.storey))
        bay = width / max(1, round(width / b.bay))
        shares = (bay, (b.height - base - 0.5) / floors, *b.window)
        rows.append((width, height, *shares, b.material, b.shop, b.seed, face.kind))
    table = np.asarray(rows, np.float32)[which].T
    return Spot(
        u,
        v,
        pixel,
        table[0],
        table[1],
        table[2],
        table[3],
        table[4],
        table[5],
        table[6].astype(np.int32),
        table[7] > 0,
        table[8].astype(np.int32),
        table[9] == FRONT,
        table[9] == ROOF,
    )


def _wall_tone(spot: Spot) -> FloatArray:
    """Relative brightness of bare wall: stains, grain, brick courses or panel joints."""
    shift = spot.seed * np.float32(0.37)
    stain = smooth(tile(), spot.u / 23 + shift, spot.v / 17 + shift) - 0.5
    grain = look(fine(), spot.u / 4 + shift, spot.v / 4) - 0.5
    streak = look(tile(4, 8), spot.u / 6 + shift, spot.v / 60) - 0.5
    tone = 1 + 0.35 * stain + 0.22 * streak + 0.3 * grain * np.clip(1.3 - spot.pixel / 0.1, 0, 1)
    course = np.floor(spot.v / 0.19).astype(np.int32)
    brick = np.floor(spot.u / 0.46 + 0.5 * (course % 2)).astype(np.int32)
    mottle = hashed(course, brick, spot.seed) - 0.5
    joint = (spot.v / 0.19 % 1 < 0.14) | ((spot.u / 0.46 + 0.5 * (course % 2)) % 1 < 0.06)
    bricks = (0.5 * mottle + 0.22 * joint) * np.clip(1.6 - spot.pixel / 0.1, 0, 1)
    panel = (spot.u % spot.bay < 0.12) | (spot.v % spot.storey < 0.14)
    tone = np.where(spot.material == BRICK, tone + bricks, tone)
    return np.asarray(np.where(spot.material == PANEL, tone - 0.25 * panel, tone))


def _tile_tone(spot: Spot) -> FloatArray:
    """Relative brightness of a roof: rows of tiles, weathering."""
    row = np.floor(spot.v / 0.195).astype(np.int32)
    column = np.floor(spot.u / 0.4).astype(np.int32)
    near = np.clip(1.6 - spot.pixel / 0.2, 0, 1)
    mottle = (hashed(row, column, spot.seed) - 0.5) * near
    edge = (spot.v / 0.195 % 1 < 0.2) * near
    stain = smooth(tile(), spot.u / 13, spot.v / 9) - 0.5
    return np.asarray(1 + 0.4 * mottle - 0.25 * edge + 0.5 * stain, np.float32)


def _windows(scene: Scene, spot: Spot, wall: FloatArray, trim: FloatArray) -> FloatArray:
    """Put windows, doors and shop fronts with their frames on the lit walls [P, 3]."""
    base = np.where(spot.shop, SHOP + 0.3, 0).astype(np.float32)
    column = np.floor(spot.u / spot.bay).astype(np.int32)
    floor = np.floor((spot.v - base) / spot.storey).astype(np.int32)
    dx = np.abs(spot.u / spot.bay - column - 0.5) * spot.bay
    dy = np.abs((spot.v - base) / spot.storey - floor - 0.52) * spot.storey
    half_w, half_h = spot.window_w * spot.bay / 2, spot.window_h * spot.storey / 2
    blind = ~spot.front & (hashed(column, spot.seed) < 0.6)
    inside = ~spot.roof & ~blind & (floor >= 0) & (spot.v < spot.height - 0.5)
    street = spot.shop & spot.front & (spot.v < SHOP)
    half_w = np.where(street, spot.bay * 0.46, half_w)
    dy = np.where(street, np.abs(spot.v - 1.6), dy)
    half_h = np.where(street, 1.15, half_h)
    inside |= street
    entrance = spot.front & ~spot.shop & ~spot.roof & (spot.v < 2.3)
    entrance &= column == np.floor(hashed(spot.seed) * np.round(spot.width / spot.bay))
    inside &= ~entrance | (spot.v > 2.35)
    border = np.maximum(dx - half_w, dy - half_h)
    frame = inside & (border < 0.14)
    glass = inside & ((border < -0.02) & ((dx > 0.045) | (spot.material == PANEL) | street))
    pane = _glass(scene, spot, column, np.where(street, 90, floor), street)
    result = np.where(frame[:, None], trim, wall)
    result = np.where(glass[:, None], pane, result)
    door = 0.25 + 0.9 * np.stack([hashed(spot.seed, spot.seed * 0 + k) for k in (4, 5, 6)], 1)
    result = np.where((entrance & (dx < 0.68))[:, None], trim, result)
    leaf = entrance & (dx < 0.55) & (spot.v < 2.15)
    result = np.where(leaf[:, None], wall * door * 0.55, result)
    awning = street & (spot.v > 2.75) & (spot.v < 3.35)
    tint = 0.15 + 0.55 * np.stack([hashed(spot.seed, spot.seed * 0 + k) for k in (1, 2, 3)], 1)
    stripes = 1 - 0.45 * (spot.u % 0.9 < 0.45) * (hashed(spot.seed) < 0.5)
    cloth = wall.mean(1, keepdims=True) * 2.6 * tint * stripes[:, None]
    return np.where(awning[:, None], cloth, result)


def _glass(
    scene: Scene,
    spot: Spot,
    column: NDArray[np.int32],
    floor: NDArray[np.int32],
    street: NDArray[np.bool_],
) -> FloatArray:
    """What a window shows: a dark room, a curtain, the sky's reflection, a lamp at night."""
    chance = hashed(column, floor, spot.seed)
    other = hashed(floor, spot.seed, column)
    light = scene.light
    sky = colour(light.horizon) * 0.35 + colour(light.zenith) * 0.25
    mirror = np.clip(0.25 + 0.04 * spot.v + 0.3 * (chance - 0.5), 0.05, 0.9)
    mirror = np.where(spot.material == PANEL, mirror + 0.25, mirror)
    wave = look(tile(2, 6), spot.u / 19 + other, spot.v / 13) * 1.2
    pane = sky * (mirror * wave)[:, None] + colour(light.ambient) * 0.04
    curtain = (other < 0.3) & ~street & (spot.material != PANEL)
    pane = np.where(curtain[:, None], pane * 0.4 + colour(light.ambient) * 0.4, pane)
    on = (chance < light.lamps * np.where(street, 1.5, 0.75))[:, None]
    warm = np.asarray((1.0, 0.68, 0.30), np.float32) * (0.35 + 0.75 * other)[:, None]
    return np.asarray(np.where(on, pane * 0.4 + warm, pane), np.float32)
