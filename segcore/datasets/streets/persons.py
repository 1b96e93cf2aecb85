"""Pedestrians: limbs of flat colour with a lit edge, in the plane that faces the camera."""

import numpy as np

from segcore.datasets.streets.noise import FloatArray
from segcore.datasets.streets.scene import Person, Scene
from segcore.datasets.streets.sprite import Point, Sprite, Stamp
from segcore.datasets.streets.view import View, colour

SHOE = np.asarray((0.03, 0.025, 0.025), np.float32)


class _Figure:
    """Draws limbs given in units of the body height, from the feet upwards."""

    def __init__(self, scene: Scene, view: View, person: Person) -> None:
        foot = view.project(np.asarray([(person.x, 0, person.z)], np.float32))[0]
        self.foot = (float(foot[0]), float(foot[1]))
        self.scale = person.height / person.z * view.focal
        x, y, k = self.foot[0], self.foot[1], self.scale
        self.sprite = Sprite(view, [(x - 0.42 * k, y - 1.05 * k), (x + 0.42 * k, y + 0.02 * k)])
        light = scene.light
        side = float(light.direction[0])
        self.lit_side = 1.0 if side > 0 else -1.0
        frontal = max(0.0, -float(light.direction[2]))
        self.shade = colour(light.ambient) * 0.8 + colour(light.sun) * (0.12 + 0.35 * frontal)
        self.bright = self.shade + colour(light.sun) * (0.25 + 0.4 * abs(side))

    def at(self, point: Point) -> Point:
        return self.foot[0] + point[0] * self.scale, self.foot[1] - point[1] * self.scale

    def limb(self, start: Point, end: Point, widths: Point, albedo: FloatArray) -> None:
        """A thick line in shade, and a narrower one in the sun along its lit side."""
        k = self.scale
        self.sprite.limb(
            self.at(start), self.at(end), (widths[0] * k, widths[1] * k), albedo * self.shade
        )
        push = self.lit_side * 0.22 * min(widths)
        a, b = (start[0] + push, start[1]), (end[0] + push, end[1])
        sunny = (widths[0] * k * 0.5, widths[1] * k * 0.5)
        self.sprite.limb(self.at(a), self.at(b), sunny, albedo * self.bright)

    def blob(self, centre: Point, radii: Point, albedo: FloatArray) -> None:
        k = self.scale
        self.sprite.ellipse(self.at(centre), (radii[0] * k, radii[1] * k), albedo * self.shade)
        lit = (centre[0] + self.lit_side * radii[0] * 0.25, centre[1] + radii[1] * 0.12)
        small = (radii[0] * k * 0.6, radii[1] * k * 0.7)
        self.sprite.ellipse(self.at(lit), small, albedo * self.bright)


def paint_person(scene: Scene, view: View, person: Person) -> list[Stamp]:
    """Draw one pedestrian."""
    if person.z < 1.0:
        return []
    figure = _Figure(scene, view, person)
    if figure.sprite.empty:
        return []
    top, skin = colour(person.top), colour(person.skin)
    wide = 0.235 - 0.07 * person.turn
    swing = person.stride * (0.3 + 0.7 * person.turn)
    face = float(person.facing)
    _arm(figure, person, -1.0, wide, swing)
    _legs(figure, person, wide, swing)
    figure.limb((0, 0.47), (0, 0.66), (wide * 0.86, wide * 0.82), top)
    figure.limb((0, 0.62), (0, 0.80), (wide * 0.84, wide), top)
    figure.limb((0, 0.79), (0, 0.835), (wide, wide * 0.45), top)
    if person.coat > 0:
        hem = 0.5 - person.coat
        figure.limb((0, 0.55), (0, hem), (wide * 0.88, wide * (1.0 + person.coat)), top * 0.92)
    if person.bag:
        place = (-face * wide * 0.55 * max(person.turn, 0.3), 0.69)
        figure.blob(place, (0.07, 0.1), colour(person.legs) * 0.6 + 0.03)
    figure.limb((0, 0.82), (0, 0.88), (0.06, 0.055), skin * 0.85)
    head = (face * 0.012 * person.turn, 0.925)
    figure.blob(head, (0.056, 0.072), skin)
    hair = (-face * 0.02 * person.turn, 0.957)
    figure.blob(hair, (0.058, 0.047), colour(person.hair))
    _arm(figure, person, 1.0, wide, swing)
    return [figure.sprite.stamp(person.z)]


def _legs(figure: _Figure, person: Person, wide: float, swing: float) -> None:
    """Two legs with knees; in profile they part along the walk, from the front side by side."""
    cloth, face = colour(person.legs), float(person.facing)
    for side, tone in ((-1.0, 0.72), (1.0, 1.0)):
        apart = side * 0.05 * (1 - person.turn)
        reach = side * swing * face
        hip = (apart * 0.8 + side * 0.012, 0.5)
        bend = 0.05 * person.turn * face * (1 if reach * face < 0 else 0.4)
        knee = (apart + reach * 0.09 + bend, 0.28 + 0.01 * abs(swing))
        lift = 0.03 * abs(swing) if side * person.stride < 0 else 0.0
        ankle = (apart + reach * 0.2, 0.035 + lift)
        figure.limb(hip, knee, (wide * 0.5, wide * 0.38), cloth * tone)
        figure.limb(knee, ankle, (wide * 0.38, wide * 0.26), cloth * tone)
        toe = (ankle[0] + face * 0.055 * person.turn + apart * 0.2, ankle[1] - 0.022)
        heel = (ankle[0] - face * 0.02 * person.turn, ankle[1] - 0.012)
        figure.limb(heel, toe, (0.045, 0.035), SHOE)


def _arm(figure: _Figure, person: Person, side: float, wide: float, swing: float) -> None:
    """One arm with its hand, swinging against the leg of its side."""
    tone = 0.75 if side < 0 else 0.95
    out = side * (wide * 0.5) * (1 - 0.8 * person.turn)
    reach = -side * swing * float(person.facing)
    shoulder, elbow = (out, 0.795), (out * 1.12 + reach * 0.05, 0.64)
    hand = (out * 1.1 + reach * 0.14, 0.5)
    figure.limb(shoulder, elbow, (0.075, 0.06), colour(person.top) * tone)
    figure.limb(elbow, hand, (0.06, 0.045), colour(person.top) * tone)
    figure.blob((hand[0], hand[1] - 0.01), (0.024, 0.03), colour(person.skin) * tone)
