"""What keeps light off the ground: cast shadows, and the dark beneath things."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from segcore.datasets.streets.cars import SHAPES
from segcore.datasets.streets.noise import FloatArray
from segcore.datasets.streets.scene import Building, Car, Person, Scene, Tree
from segcore.datasets.streets.view import NEAR, View

LONGEST = 4.5
CIRCLE = np.stack([f(np.arange(16) * (2 * np.pi / 16)) for f in (np.cos, np.sin)], 1)


def shadow_masks(scene: Scene, view: View) -> tuple[FloatArray, FloatArray]:
    """Share of the sun, and of the sky, that is kept off the ground: two [H, W] in 0..1."""
    sunless, dark = _Mask(view), _Mask(view)
    sx, sy, sz = scene.light.direction
    length = min(1 / max(sy, 0.05), LONGEST / max(float(np.hypot(sx, sz)), 1e-3))
    cast = np.asarray((-sx * length, -sz * length))
    for building in scene.buildings:
        _building(sunless, building, cast)
    for thing in scene.things:
        if isinstance(thing, Car):
            _car(sunless, dark, thing, cast)
        elif isinstance(thing, Person):
            _person(sunless, dark, thing, cast)
        else:
            _tree(sunless, dark, thing, cast)
    return sunless.soft(view.height / 530), dark.soft(view.height / 145)


class _Mask:
    """Polygons on the ground, seen by the camera."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.picture = Image.new("L", (view.width, view.height))
        self.pen = ImageDraw.Draw(self.picture)

    def fill(self, polygons: FloatArray, value: int = 255) -> None:
        """Fill convex polygons (x, z) [P, K, 2] in metres."""
        view = self.view
        z = polygons[..., 1]
        kept = polygons[np.any(z > NEAR, axis=1)]
        if kept.size == 0:
            return
        points = np.stack([kept[..., 0], 0 * kept[..., 0], kept[..., 1]], 2)
        whole = np.all(kept[..., 1] > NEAR, axis=1)
        safe = np.where(points[..., 2:] > NEAR, points, (0, 0, 1))
        pixels = view.project(safe.reshape(-1, 3)).reshape(*kept.shape)
        flat = pixels.reshape(len(kept), -1).tolist()
        for index, outline in enumerate(flat):
            clipped = outline if whole[index] else view.outline(points[index])
            if clipped:
                self.pen.polygon(clipped, fill=value)

    def extrude(self, base: FloatArray, offset: FloatArray) -> None:
        """Fill what an upright prism over a convex polygon [K, 2] shades."""
        after = np.roll(base, -1, axis=0)
        self.fill(np.stack([base, after, after + offset, base + offset], 1))
        self.fill((base + offset)[None])

    def soft(self, radius: float) -> FloatArray:
        """Blur by a radius in pixels."""
        blurred = self.picture.filter(ImageFilter.GaussianBlur(radius))
        return np.asarray(blurred, np.float32) / 255


def _oval(middle: FloatArray, along: FloatArray, across: FloatArray) -> FloatArray:
    """Corners [..., 16, 2] of ellipses on the ground with the given half axes."""
    return np.asarray(middle[..., None, :] + CIRCLE[:, :1] * along + CIRCLE[:, 1:] * across)


def _building(sun: _Mask, building: Building, cast: FloatArray) -> None:
    corner, along = np.asarray(building.corner), np.asarray(building.along) * building.length
    out = np.asarray(building.outward) * building.depth
    base = np.stack([corner, corner + along, corner + along + out, corner + out])
    sun.extrude(base, cast * building.height)
    if building.roof > 0:
        ridge = np.stack([corner + out / 2, corner + along + out / 2])
        ridge = ridge + cast * (building.height + building.roof)
        eaves = base + cast * building.height
        sun.fill(np.stack([[eaves[0], eaves[1], ridge[1], ridge[0]]]))
        sun.fill(np.stack([[eaves[3], eaves[2], ridge[1], ridge[0]]]))


def _car(sun: _Mask, dark: _Mask, car: Car, cast: FloatArray) -> None:
    shape = SHAPES[car.shape]
    ahead = np.asarray((np.sin(car.yaw), np.cos(car.yaw)))
    right = np.asarray((ahead[1], -ahead[0]))
    a, b = ahead * shape.length * car.size / 2, right * shape.width * car.size / 2
    base = np.stack([-a - b, -a + b, a + b, a - b])
    place = np.asarray((car.x, car.z))
    dark.fill((place + base * 1.08)[None], 235)
    sun.extrude(place + base, cast * 0.9 * car.size)
    sun.extrude(place + base * 0.6, cast * 1.45 * car.size)


def _person(sun: _Mask, dark: _Mask, person: Person, cast: FloatArray) -> None:
    middle = np.asarray((person.x, person.z))
    dark.fill(_oval(middle, np.asarray((0.31, 0)), np.asarray((0, 0.26)))[None], 200)
    tall = cast * person.height
    across = np.asarray((-cast[1], cast[0])) / max(float(np.hypot(*cast)), 1e-6) * 0.22
    for side in (-0.5, 0.5):
        edge = np.stack([middle + across * (side - 0.3), middle + across * (side + 0.3)])
        sun.fill(np.stack([[edge[0], edge[1], edge[1] + tall / 2, edge[0] + tall / 2]]))
    sun.fill(_oval(middle + tall * 0.64, tall * 0.22, across)[None])
    sun.fill(_oval(middle + tall * 0.92, tall * 0.08, across * 0.5)[None])


def _tree(sun: _Mask, dark: _Mask, tree: Tree, cast: FloatArray) -> None:
    rng = np.random.default_rng(tree.seed)
    middle = np.asarray((tree.x, tree.z))
    x, z = np.asarray((1.0, 0)), np.asarray((0, 1.0))
    trunk = np.stack([middle - 0.2 * x, middle + 0.2 * x])
    top = cast * tree.height * 0.6
    sun.fill(np.stack([[trunk[0], trunk[1], trunk[1] + top, trunk[0] + top]]))
    for reach, value in ((0.6 * tree.radius, 60), (0.45, 170)):
        dark.fill(_oval(middle, reach * x, reach * z)[None], value)
    long = float(np.hypot(*cast))
    axis = cast / max(long, 1e-6)
    across = np.asarray((-axis[1], axis[0]))
    reach = tree.radius * (1 + 0.5 * long)
    angle, away = rng.uniform(0, 2 * np.pi, 20), np.sqrt(rng.random(20)) * 0.8
    offset = (np.cos(angle) * away * reach)[:, None] * axis
    offset = offset + (np.sin(angle) * away * tree.radius)[:, None] * across
    size = rng.uniform(0.2, 0.36, (20, 1, 1))
    crown = middle + cast * (tree.height - tree.radius) + offset
    sun.fill(_oval(crown, axis * reach * size, across * tree.radius * size), 235)
