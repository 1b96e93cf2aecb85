"""What a street scene consists of: metres and colours, free of any image size.

World axes: x to the right, y up from the ground, z into the picture; the camera stands at
(camera.x, camera.height, 0). Colours are linear RGB.
"""

from dataclasses import dataclass

import numpy as np

from segcore.datasets.streets.noise import FloatArray

RGB = tuple[float, float, float]

SKY, BUILDING, ROAD, GRASS, CAR, PERSON, TREE = range(7)
CLASSES = ("sky", "building", "road", "grass", "car", "person", "tree")
PALETTE: tuple[tuple[int, int, int], ...] = (
    (117, 178, 221),
    (176, 137, 104),
    (99, 93, 120),
    (152, 195, 93),
    (226, 87, 76),
    (247, 201, 72),
    (44, 122, 82),
)
THINGS = (False, False, False, False, True, True, True)


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole with a level optical axis, shifted so that the horizon lies at `horizon`.

    Args:
        x: metres right of the middle of the road.
        height: metres above the ground.
        focal: focal length in image heights.
        horizon: fraction of the image height above the horizon.
        exposure: factor on the light.
        balance: white-balance gains.
        noise: standard deviation of the sensor noise in 0..1 of the finished image.
        vignette: loss of light in the corners, 0..1.
    """

    x: float
    height: float
    focal: float
    horizon: float
    exposure: float
    balance: RGB
    noise: float
    vignette: float


@dataclass(frozen=True, slots=True)
class Light:
    """Sun, sky and air.

    Args:
        mood: "day", "golden", "overcast" or "dusk".
        ambient: light of the sky on a horizontal surface.
        sun: light of the sun on a surface that faces it.
        direction: unit vector towards the sun.
        zenith, horizon: colours of the sky.
        haze: distance in metres at which 63% of the colour is that of the air.
        clouds: cover in 0..1.
        offset: where in the noise tile the clouds are read.
        lamps: 0..1, how many windows and vehicle lights are on.
    """

    mood: str
    ambient: RGB
    sun: RGB
    direction: RGB
    zenith: RGB
    horizon: RGB
    haze: float
    clouds: float
    offset: tuple[float, float]
    lamps: float


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the street: widths in metres from the kerb outwards."""

    verge: float
    pavement: float
    lawn: float
    park: bool


@dataclass(frozen=True, slots=True)
class Street:
    """The road: its middle lies at x = centre(z).

    Args:
        heading, bend: slope and curvature of the middle line.
        half_width: metres from the middle to the kerb.
        left, right: what lies beside it.
        asphalt, paving, grass: albedos.
        dashed: the middle line is dashed, else solid.
        zebra: z of a zebra crossing, or 0 for none.
        hills: the far horizon shows hills, else a skyline.
    """

    heading: float
    bend: float
    half_width: float
    left: Side
    right: Side
    asphalt: RGB
    paving: RGB
    grass: RGB
    dashed: bool
    zebra: float
    hills: bool

    def centre(self, z: FloatArray) -> FloatArray:
        """x of the middle of the road at depth z >= 0, in metres."""
        return np.asarray(self.heading * z + self.bend * z * z / (1 + z / 70), np.float32)

    def slope(self, z: float) -> float:
        """Derivative of `centre` at depth z."""
        near, far = self.centre(np.asarray([max(z, 0.0), max(z, 0.0) + 0.5], np.float32))
        return float(far - near) / 0.5

    def side(self, right: bool) -> Side:
        return self.right if right else self.left


@dataclass(frozen=True, slots=True)
class Building:
    """A box with a flat or gabled roof; its front faces the road.

    Args:
        corner: (x, z) of the front's end that is nearer to the camera.
        along, outward: unit vectors (x, z) along the front and away from the road.
        length, depth, height, roof: metres; roof is the ridge's height over the eaves.
        wall, trim, tiles: albedos.
        material: 0 plaster, 1 brick, 2 panels of glass and concrete.
        bay, storey: spacing of windows in metres.
        window: width and height of a window as fractions of bay and storey.
        shop: the ground floor is a shop.
        seed: of what differs from window to window.
    """

    corner: tuple[float, float]
    along: tuple[float, float]
    outward: tuple[float, float]
    length: float
    depth: float
    height: float
    roof: float
    wall: RGB
    trim: RGB
    tiles: RGB
    material: int
    bay: float
    storey: float
    window: tuple[float, float]
    shop: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Car:
    """A vehicle at (x, z) whose front points along `yaw` (0: away from the camera)."""

    x: float
    z: float
    yaw: float
    shape: str
    size: float
    paint: RGB
    moving: bool


@dataclass(frozen=True, slots=True)
class Person:
    """A pedestrian; stride in -1..1 is the phase of the walk, turn in 0..1 front to profile."""

    x: float
    z: float
    height: float
    stride: float
    turn: float
    facing: int
    top: RGB
    legs: RGB
    skin: RGB
    hair: RGB
    coat: float
    bag: bool


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree; shape is "round", "poplar" or "conifer", radius that of the crown in metres."""

    x: float
    z: float
    height: float
    radius: float
    shape: str
    leaves: RGB
    bark: RGB
    seed: int


Thing = Car | Person | Tree


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture's worth of world."""

    seed: int
    camera: Camera
    light: Light
    street: Street
    buildings: tuple[Building, ...]
    things: tuple[Thing, ...]
