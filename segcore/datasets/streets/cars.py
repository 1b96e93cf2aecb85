"""Cars: a hull of flat faces in space, with GLASS, wheels and lamps on it."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from segcore.datasets.streets.noise import FloatArray
from segcore.datasets.streets.scene import Car, Scene
from segcore.datasets.streets.sprite import Sprite, Stamp
from segcore.datasets.streets.view import View, colour, lit

TYRE = np.asarray((0.02, 0.02, 0.022), np.float32)
RIM = np.asarray((0.36, 0.37, 0.38), np.float32)
GLASS = np.asarray((0.012, 0.014, 0.016), np.float32)
HEAD = np.asarray((0.85, 0.85, 0.80), np.float32)
TAIL = np.asarray((0.30, 0.012, 0.012), np.float32)
PLATE = np.asarray((0.75, 0.75, 0.70), np.float32)


@dataclass(frozen=True, slots=True)
class Shape:
    """Profile of a car, metres: length, width, and (along, up) from the rear to the front.

    Args:
        deck: rear end of the roof line's foot; roof_rear, roof_front: the roof; cowl: foot of
            the windscreen; each (fraction of the length from -0.5 to 0.5, height).
        belt: height of the rear and of the bonnet's front edge.
    """

    length: float
    width: float
    deck: tuple[float, float]
    roof_rear: tuple[float, float]
    roof_front: tuple[float, float]
    cowl: tuple[float, float]
    belt: tuple[float, float]


SHAPES = {
    "sedan": Shape(
        4.6, 1.82, (-0.36, 1.02), (-0.2, 1.44), (0.08, 1.46), (0.26, 0.98), (0.95, 0.76)
    ),
    "hatch": Shape(4.0, 1.76, (-0.49, 1.0), (-0.38, 1.46), (0.08, 1.5), (0.27, 1.0), (0.96, 0.78)),
    "suv": Shape(4.6, 1.92, (-0.49, 1.15), (-0.44, 1.72), (0.07, 1.76), (0.22, 1.16), (1.1, 0.98)),
    "van": Shape(5.2, 2.0, (-0.495, 1.25), (-0.485, 2.2), (0.24, 2.25), (0.39, 1.25), (1.2, 1.02)),
}
SILL = 0.26


Corners = list[tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class _Face:
    """A flat convex face: corners as (along, up, side) in metres of the car, and its look."""

    corners: Corners
    albedo: FloatArray
    gloss: float
    glow: float


class _Body:
    """Collects the faces of a car in the order of painting, then draws them all."""

    def __init__(self, scene: Scene, car: Car) -> None:
        self.scene, self.car = scene, car
        self.shape = SHAPES[car.shape]
        self.half = self.shape.width / 2
        self.paint = colour(car.paint)
        ahead = np.asarray((np.sin(car.yaw), 0, np.cos(car.yaw)))
        right = np.asarray((np.cos(car.yaw), 0, -np.sin(car.yaw)))
        self.axes = np.stack([ahead, (0, 1, 0), right]) * car.size
        self.place = np.asarray((car.x, 0, car.z))
        self.eye = np.asarray((scene.camera.x, scene.camera.height, 0))
        self.seen_from = self.axes @ (self.eye - self.place)
        self.faces: list[_Face] = []

    def world(self, corners: Corners) -> FloatArray:
        """Points of the car [N, 3] in the world."""
        return np.asarray(self.place + np.asarray(corners) @ self.axes)

    def face(self, corners: Corners, albedo: FloatArray, gloss: float, glow: float = 0.0) -> None:
        """Add a face: matt paint, a share of mirrored sky, light of its own."""
        self.faces.append(_Face(corners, albedo, gloss, glow))

    def draw(self, view: View, sprite: Sprite) -> None:
        """Draw the faces that look towards the camera."""
        counts = np.asarray([len(face.corners) for face in self.faces])
        starts = np.cumsum(counts) - counts
        points = self.world([corner for face in self.faces for corner in face.corners])
        middle = np.add.reduceat(points, starts) / counts[:, None]
        normal = np.cross(points[starts + 1] - points[starts], points[starts + 2] - points[starts])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        inside = self.place + np.asarray((0, 0.6, 0))
        normal *= np.where(((middle - inside) * normal).sum(1) > 0, 1, -1)[:, None]
        visible = ((self.eye - middle) * normal).sum(1) > 0
        shine = self._shine(normal)
        pixels = list(map(tuple, view.project(points).tolist()))
        for index in np.flatnonzero(visible):
            start = starts[index]
            sprite.polygon(pixels[start : start + counts[index]], shine[index])

    def _shine(self, normal: FloatArray) -> FloatArray:
        """Light that the faces send to the camera, [F, 3]."""
        light = self.scene.light
        albedo = np.stack([face.albedo for face in self.faces])
        gloss = np.asarray([face.gloss for face in self.faces])[:, None]
        glow = np.asarray([face.glow for face in self.faces])[:, None]
        sky = colour(light.zenith) * 0.5 + colour(light.horizon) * 0.5
        mirrored = sky * gloss * (0.35 + 0.65 * np.maximum(normal[:, 1:2], 0))
        shine = lit(light, albedo, normal) + mirrored + albedo * glow
        return np.asarray(shine, np.float32)


def paint_car(scene: Scene, view: View, car: Car) -> list[Stamp]:
    """Draw one car."""
    body = _Body(scene, car)
    s, half = body.shape, body.half
    box = [
        (a * s.length, u, b * half)
        for a in (-0.52, 0.52)
        for u in (0.0, s.roof_front[1])
        for b in (-1.05, 1.05)
    ]
    corners = body.world(box)
    if corners[:, 2].min() < 1.0:
        return []
    sprite = Sprite(view, view.project(corners).tolist())
    if sprite.empty:
        return []
    from_front = float(body.seen_from[0]) > 0
    _underside(body)
    _hull(body, from_front)
    _side(body, 1.0 if float(body.seen_from[2]) > 0 else -1.0)
    _end(body, from_front)
    body.draw(view, sprite)
    return [sprite.stamp(car.z)]


def _underside(body: _Body) -> None:
    """The dark between the wheels, and the wheels' ends as seen from the front or rear."""
    s, half = body.shape, body.half
    for end in (-0.47, 0.47):
        a = end * s.length
        body.face(
            [(a, 0.1, -half * 0.8), (a, 0.1, half * 0.8), (a, 0.4, half), (a, 0.4, -half)],
            TYRE * 0.4,
            0.0,
        )
    for axle in (-0.31, 0.31):
        a = axle * s.length + (0.31 if axle > 0 else -0.31)
        for inner in (-half + 0.02, half - 0.24):
            quad = [(a, 0.0, inner), (a, 0.0, inner + 0.22), (a, 0.5, inner + 0.22)]
            body.face([*quad, (a, 0.5, inner)], TYRE, 0.0)


def _hull(body: _Body, from_front: bool) -> None:
    """Bonnet, windscreen, roof, rear window and boot: strips across the car."""
    s, half, length = body.shape, body.half, body.shape.length
    paint = body.paint
    top = half * 0.80
    line = [
        (-0.5 * length, s.belt[0], half),
        (s.deck[0] * length, s.deck[1], half * 0.97),
        (s.roof_rear[0] * length, s.roof_rear[1], top),
        (s.roof_front[0] * length, s.roof_front[1], top),
        (s.cowl[0] * length, s.cowl[1], half * 0.97),
        (0.49 * length, s.belt[1], half * 0.97),
    ]
    strips = list(pairwise(line))
    order = range(5) if from_front else range(4, -1, -1)
    for k in order:
        (a, u, w), (b, v, x) = strips[k]
        body.face([(a, u, -w), (a, u, w), (b, v, x), (b, v, -x)], paint, 0.22)
        if k in (1, 3):
            inset = 0.1
            a2, u2, b2, v2 = (
                a + (b - a) * inset,
                u + (v - u) * inset,
                b - (b - a) * inset,
                v - (v - u) * inset,
            )
            quad = [(a2, u2, -w * 0.9), (a2, u2, w * 0.9), (b2, v2, x * 0.9), (b2, v2, -x * 0.9)]
            body.face(quad, GLASS, 0.26)


def _side(body: _Body, near: float) -> None:
    """The flank that the camera sees: panel, sill, windows, wheels."""
    s, length = body.shape, body.shape.length
    w, top, belt = near * body.half, near * body.half * 0.80, near * body.half * 0.97
    paint = body.paint
    rear, front = -0.5 * length, 0.49 * length
    deck, cowl = s.deck[0] * length, s.cowl[0] * length
    r0, r1 = s.roof_rear[0] * length, s.roof_front[0] * length
    upper = [(deck, s.deck[1], belt), (r0, s.roof_rear[1], top), (r1, s.roof_front[1], top)]
    body.face([*upper, (cowl, s.cowl[1], belt)], paint, 0.16)
    shoulder = [(rear, s.belt[0], w), (deck, s.deck[1], belt), (cowl, s.cowl[1], belt)]
    lower = [(front, 0.62, w), (rear, 0.62, w)]
    body.face([*shoulder, (front, s.belt[1], w), *lower], paint * 1.05, 0.2)
    body.face(
        [(rear, 0.64, w), (front, 0.64, w), (front, 0.36, w), (rear, 0.36, w)],
        paint * 0.8,
        0.1,
    )
    body.face(
        [(rear, 0.38, w), (front, 0.38, w), (front - 0.1, SILL - 0.06, w), (rear, SILL, w)],
        paint * 0.3,
        0.02,
    )
    _side_windows(body, near)
    radius = 0.33 if body.car.shape != "suv" else 0.38
    for axle in (-0.31, 0.31):
        for size, lift, tone, gloss in ((1.16, 0.05, TYRE * 0.6, 0.0), (1.0, 0.0, TYRE, 0.0)):
            body.face(_disc(axle * length, radius, size, lift, w), tone, gloss)
        body.face(_disc(axle * length, radius, 0.58, 0.0, w), RIM, 0.1)
        body.face(_disc(axle * length, radius, 0.2, 0.0, w), TYRE, 0.1)


def _disc(along: float, radius: float, size: float, lift: float, side: float) -> Corners:
    angle = np.arange(18) * (2 * np.pi / 18)
    r = radius * size
    x, y = along + r * np.cos(angle), np.maximum(radius + lift + r * np.sin(angle), 0.0)
    return [(float(a), float(b), side) for a, b in zip(x, y, strict=True)]


def _side_windows(body: _Body, near: float) -> None:
    """Two panes between belt and roof; a van has only the front one."""
    s, length = body.shape, body.shape.length
    low, high = s.deck[1] + 0.03, s.roof_front[1] - 0.1
    share = (high - s.deck[1]) / (s.roof_front[1] - s.deck[1])
    bottom_w, top_w = near * body.half * 0.965, near * body.half * (0.97 - 0.17 * share)
    rear = (s.deck[0] + 0.035) * length, (s.roof_rear[0] + 0.03) * length
    front = (s.cowl[0] - 0.035) * length, (s.roof_front[0] + 0.01) * length
    split = 0.5 * (rear[1] + front[1]) - 0.02 * length
    panes = [((split + 0.06, front[0]), (split + 0.06, front[1]))]
    if body.car.shape != "van":
        panes.append(((rear[0], split - 0.06), (rear[1], split - 0.06)))
    for (a, b), (c, d) in panes:
        quad = [(a, low, bottom_w), (b, low, bottom_w), (d, high, top_w), (c, high, top_w)]
        body.face(quad, GLASS, 0.2)


def _end(body: _Body, from_front: bool) -> None:
    """Front with grille and headlamps, or rear with tail lamps; both with a number plate."""
    s, half = body.shape, body.half
    paint = body.paint
    a = (0.495 if from_front else -0.505) * s.length
    top = s.belt[1] if from_front else s.belt[0]

    def panel(low: float, high: float, inner: float, outer: float) -> Corners:
        return [(a, low, inner), (a, low, outer), (a, high, outer), (a, high, inner)]

    body.face(panel(0.5, top, -half, half), paint, 0.14)
    body.face(panel(SILL, 0.52, -half, half), paint * 0.65, 0.06)
    body.face(panel(SILL - 0.04, 0.36, -half * 0.95, half * 0.95), TYRE, 0.02)
    if from_front:
        body.face(panel(0.46, 0.62, -half * 0.5, half * 0.5), TYRE, 0.05)
    body.face(panel(0.4, 0.52, -0.26, 0.26), PLATE, 0.0)
    lamp, low = (HEAD, top - 0.18) if from_front else (TAIL, top - 0.24)
    on = body.scene.light.lamps if body.car.moving else 0.0
    glow = on * (4.0 if from_front else 1.2)
    for side in (-1.0, 1.0):
        edge, inner = side * half * 0.97, side * half * (0.66 if from_front else 0.78)
        body.face(panel(low, top - 0.04, inner, edge), lamp, 0.15, glow)
