"""From a scene to a picture with exact labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.datasets.streets.buildings import paint_buildings
from segcore.datasets.streets.cars import paint_car
from segcore.datasets.streets.ground import paint_ground
from segcore.datasets.streets.noise import FloatArray
from segcore.datasets.streets.persons import paint_person
from segcore.datasets.streets.scene import CAR, CLASSES, PERSON, TREE, Car, Person, Scene, Thing
from segcore.datasets.streets.shadows import shadow_masks
from segcore.datasets.streets.sky import paint_horizon, paint_sky
from segcore.datasets.streets.sprite import Stamp
from segcore.datasets.streets.trees import paint_tree
from segcore.datasets.streets.view import Canvas, View, colour

OVERSAMPLING = 2
SMALLEST = 12


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered scene.

    Args:
        image: uint8 RGB [H, W, 3].
        classes: uint8 class indices [H, W].
        instances: int32 [H, W]: 0 for stuff, k + 1 for the k-th instance.
        categories: class of each instance; every one of them has at least SMALLEST pixels.
    """

    image: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    instances: NDArray[np.int32]
    categories: tuple[int, ...]


def render(scene: Scene, height: int, width: int) -> Picture:
    """Render a scene; things of which fewer than SMALLEST pixels would show are left out.

    The picture is painted at OVERSAMPLING times the size. Colours are averaged; a pixel's label
    is that of most of its parts, so that labels have no blended edge and agree with the picture.
    """
    view = View(scene.camera, height * OVERSAMPLING, width * OVERSAMPLING)
    canvas = _backdrop(scene, view)
    stamps = [
        (index, stamp)
        for index, thing in enumerate(scene.things)
        for stamp in _paint(scene, view, thing)
    ]
    stamps.sort(key=lambda item: -item[1].depth)
    kept = np.ones(len(scene.things), bool)
    while True:
        front = Canvas(canvas.colour.copy(), canvas.label.copy(), canvas.depth.copy())
        for index, stamp in stamps:
            if kept[index]:
                stamp.put(scene, front, len(CLASSES) + index)
        label = _majority(front.label)
        area = np.bincount(label.ravel(), minlength=len(CLASSES) + len(kept))[len(CLASSES) :]
        if (area[kept] >= SMALLEST).all():
            break
        kept &= area >= SMALLEST
    return _picture(_develop(scene, front.colour), label, scene, kept)


def _backdrop(scene: Scene, view: View) -> Canvas:
    """Everything but the things themselves; their shadows are there."""
    canvas = Canvas.blank(view)
    paint_sky(scene, view, canvas)
    paint_horizon(scene, view, canvas)
    paint_buildings(scene, view, canvas)
    paint_ground(scene, view, canvas, *shadow_masks(scene, view))
    return canvas


def _paint(scene: Scene, view: View, thing: Thing) -> list[Stamp]:
    if isinstance(thing, Car):
        return paint_car(scene, view, thing)
    if isinstance(thing, Person):
        return paint_person(scene, view, thing)
    return paint_tree(scene, view, thing)


def _picture(
    image: NDArray[np.uint8],
    label: NDArray[np.int32],
    scene: Scene,
    kept: NDArray[np.bool_],
) -> Picture:
    """Number the kept things from 1 and look up what class each label is."""
    numbers = np.concatenate([np.zeros(len(CLASSES)), np.cumsum(kept) * kept]).astype(np.int32)
    every = [category_of(thing) for thing in scene.things]
    classes = np.asarray([*range(len(CLASSES)), *every], np.uint8)
    categories = tuple(c for c, keep in zip(every, kept, strict=True) if keep)
    return Picture(image, classes[label], numbers[label], categories)


def category_of(thing: Thing) -> int:
    """Class index of a thing."""
    if isinstance(thing, Car):
        return CAR
    return PERSON if isinstance(thing, Person) else TREE


def _majority(label: NDArray[np.int32]) -> NDArray[np.int32]:
    """The most frequent of each 2x2 block of labels; the first of them where all differ."""
    a, b = label[0::2, 0::2], label[0::2, 1::2]
    c, d = label[1::2, 0::2], label[1::2, 1::2]
    first = (a == b) | (a == c) | (a == d)
    second = (b == c) | (b == d)
    return np.where(first, a, np.where(second, b, np.where(c == d, c, a))).astype(np.int32)


def _develop(scene: Scene, light: FloatArray) -> NDArray[np.uint8]:
    """What the camera makes of light [2H, 2W, 3]: glow, exposure, film curve, vignette, noise."""
    height, width = light.shape[0] // 2, light.shape[1] // 2
    camera = scene.camera
    light = np.minimum(light, 3.0).reshape(height, 2, width, 2, 3).mean((1, 3))
    light = light + _glow(light)
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - 0.5
    x = ((np.arange(width, dtype=np.float32)[None] + 0.5) / width - 0.5) * (width / height)
    corner = 0.25 + 0.25 * (width / height) ** 2
    shade = 1 - camera.vignette * (x * x + y * y) / corner
    exposed = light * colour(camera.balance) * (1.5 * camera.exposure) * shade[..., None]
    tone = (1 - np.exp(-exposed)) ** (1 / 2.2)
    tone = 0.5 * tone + 0.5 * tone * tone * (3 - 2 * tone)
    grey = tone.mean(2, keepdims=True)
    tone = grey + 1.12 * (tone - grey)
    rng = np.random.default_rng(scene.seed)
    grain = rng.standard_normal(tone.shape, np.float32)
    grain = 0.6 * grain + 0.8 * grain[..., :1]
    tone = tone + grain * (camera.noise * (1.3 - 0.8 * tone))
    return np.asarray(np.clip(tone * 255 + 0.5, 0, 255), np.uint8)


def _glow(light: FloatArray) -> FloatArray:
    """Light that very bright places scatter in the lens, [H, W, 3]."""
    height, width = light.shape[:2]
    coarse = (max(2, round(24 * width / height)), 24)
    spread = np.empty_like(light)
    for channel in range(3):
        bright = Image.fromarray(np.maximum(light[..., channel] - 1.1, 0))
        small = bright.resize(coarse, Image.Resampling.BOX)
        large = small.resize((width, height), Image.Resampling.BICUBIC)
        spread[..., channel] = np.asarray(large)
    return 0.35 * np.maximum(spread, 0)
