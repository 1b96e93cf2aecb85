"""Where cars, people and trees stand in a street, and what they look like."""

import numpy as np

from segcore.datasets.streets.scene import RGB, Building, Camera, Car, Person, Street, Thing, Tree

PAINTS: tuple[RGB, ...] = (
    (0.62, 0.63, 0.64),
    (0.34, 0.35, 0.37),
    (0.10, 0.105, 0.115),
    (0.025, 0.026, 0.03),
    (0.42, 0.03, 0.03),
    (0.04, 0.09, 0.30),
    (0.10, 0.24, 0.36),
    (0.05, 0.16, 0.08),
    (0.55, 0.38, 0.06),
    (0.45, 0.40, 0.32),
    (0.24, 0.07, 0.05),
)
CLOTHES: tuple[RGB, ...] = (
    (0.03, 0.03, 0.04),
    (0.05, 0.08, 0.18),
    (0.35, 0.05, 0.05),
    (0.60, 0.58, 0.54),
    (0.22, 0.22, 0.22),
    (0.50, 0.33, 0.06),
    (0.07, 0.20, 0.12),
    (0.28, 0.18, 0.11),
    (0.12, 0.28, 0.42),
    (0.45, 0.16, 0.24),
)
TROUSERS: tuple[RGB, ...] = (
    (0.03, 0.04, 0.09),
    (0.02, 0.02, 0.025),
    (0.14, 0.12, 0.10),
    (0.30, 0.26, 0.20),
    (0.08, 0.11, 0.20),
)
SKINS: tuple[RGB, ...] = ((0.62, 0.42, 0.31), (0.45, 0.27, 0.18), (0.20, 0.11, 0.07))
HAIRS: tuple[RGB, ...] = ((0.02, 0.015, 0.012), (0.12, 0.06, 0.03), (0.38, 0.25, 0.10))
GREENS: tuple[RGB, ...] = (
    (0.075, 0.135, 0.035),
    (0.10, 0.165, 0.04),
    (0.055, 0.11, 0.045),
    (0.12, 0.15, 0.035),
)
AUTUMN: tuple[RGB, ...] = ((0.40, 0.19, 0.03), (0.34, 0.10, 0.03), (0.42, 0.30, 0.05))


def place_things(
    rng: np.random.Generator,
    camera: Camera,
    street: Street,
    buildings: tuple[Building, ...],
    autumn: float,
) -> tuple[Thing, ...]:
    """Fill the street.

    Args:
        autumn: how far leaves have turned, 0..1.
    """
    cars = _cars(rng, camera, street)
    trees = _trees(rng, camera, street, buildings, autumn)
    people = _people(rng, camera, street, [*cars, *trees])
    return (*cars, *trees, *people)


def _pick(rng: np.random.Generator, colours: tuple[RGB, ...], amount: float) -> RGB:
    """Draw a colour and vary it."""
    base = np.asarray(colours[int(rng.integers(len(colours)))])
    value = base * np.exp(rng.normal(0, amount)) * np.exp(rng.normal(0, amount / 2, 3))
    r, g, b = (float(channel) for channel in np.clip(value, 0, 1))
    return r, g, b


def _at(street: Street, z: float, s: float) -> float:
    """x of a place s metres right of the middle of the road."""
    return float(street.centre(np.asarray(z, np.float32))) + s


def _cars(rng: np.random.Generator, camera: Camera, street: Street) -> list[Car]:
    """Traffic in both lanes, parked cars at the kerbs, now and then one that crosses."""
    cars: list[Car] = []
    half = street.half_width
    parking = half > 4.5
    lane = half * (0.28 if parking else 0.5)
    if abs(camera.x) > half:
        lane = half * 0.45
    lanes = [
        (lane, 0.0, True, 0.55),
        (-lane, np.pi, True, 0.6),
    ]
    if parking:
        lanes += [(half - 1.0, 0.0, False, 0.6), (1.0 - half, np.pi, False, 0.6)]
    for s, yaw, moving, share in lanes:
        z = float(rng.uniform(6.5, 16) if s * camera.x <= 0 else rng.uniform(9.5, 20))
        while z < 62:
            if rng.random() < share:
                cars.append(_car(rng, street, z, s, yaw, moving))
            z += float(rng.uniform(7, 19) if moving else rng.uniform(5.8, 11))
    if rng.random() < 0.18 and not parking:
        z = float(rng.uniform(13, 24))
        cars = [car for car in cars if abs(car.z - z) > 5.5]
        side = float(rng.choice([-1.0, 1.0]))
        cars.append(_car(rng, street, z, side * rng.uniform(0, 1.5), side * np.pi / 2, True))
    return cars


def _car(
    rng: np.random.Generator, street: Street, z: float, s: float, yaw: float, moving: bool
) -> Car:
    turn = float(np.arctan(street.slope(z))) + float(rng.normal(0, 0.03))
    shapes = ("sedan", "hatch", "suv", "van")
    return Car(
        _at(street, z, s + float(rng.normal(0, 0.08))),
        z,
        yaw + turn,
        shapes[int(rng.choice(4, p=[0.34, 0.3, 0.24, 0.12]))],
        float(rng.uniform(0.95, 1.05)),
        _pick(rng, PAINTS, 0.12),
        moving,
    )


def _trees(
    rng: np.random.Generator,
    camera: Camera,
    street: Street,
    buildings: tuple[Building, ...],
    autumn: float,
) -> list[Tree]:
    """Rows along the verges, groups in parks, one or another in front gardens and gaps."""
    trees: list[Tree] = []
    for right in (False, True):
        side, sign = street.side(right), 1.0 if right else -1.0
        kerb = street.half_width + 0.3
        beyond = kerb + side.verge + side.pavement
        if side.verge > 0 and rng.random() < 0.75:
            kind, step = _kind(rng), float(rng.uniform(7, 14))
            z = float(rng.uniform(7, 14)) + (kind == "poplar") * 5
            while z < 70:
                if rng.random() < 0.8 and abs(z - street.zebra) > 3.5:
                    s = sign * (kerb + side.verge / 2)
                    trees.append(_tree(rng, street, (z, s), kind, 0.8, autumn))
                z += step * float(rng.uniform(0.85, 1.2))
        if side.park:
            for _ in range(int(rng.integers(6, 12))):
                z = float(rng.uniform(9, 75))
                s = sign * (beyond + float(rng.uniform(1.5, 6 + z * 0.45)))
                trees.append(_tree(rng, street, (z, s), _kind(rng), 1.15, autumn))
        elif side.lawn > 2.2:
            for _ in range(int(rng.integers(0, 4))):
                z = float(rng.uniform(9, 50))
                s = sign * (beyond + side.lawn * 0.45)
                trees.append(_tree(rng, street, (z, s), _kind(rng), 0.6, autumn))
    return _apart(trees)


def _apart(trees: list[Tree]) -> list[Tree]:
    """Drop trees that would stand inside another."""
    kept: list[Tree] = []
    for tree in trees:
        if all(np.hypot(tree.x - t.x, tree.z - t.z) > 0.8 * max(tree.radius, 2) for t in kept):
            kept.append(tree)
    return kept


def _kind(rng: np.random.Generator) -> str:
    return str(rng.choice(["round", "round", "round", "poplar", "conifer"]))


def _tree(
    rng: np.random.Generator,
    street: Street,
    place: tuple[float, float],
    kind: str,
    size: float,
    autumn: float,
) -> Tree:
    z, s = place
    height = size * float(rng.uniform(6.0, 9.5))
    shares = {"round": (0.30, 0.36), "poplar": (0.13, 0.17), "conifer": (0.2, 0.27)}
    turned = kind != "conifer" and rng.random() < autumn
    return Tree(
        _at(street, z, s + float(rng.normal(0, 0.15))),
        z,
        height,
        height * float(rng.uniform(*shares[kind])),
        kind,
        _pick(rng, AUTUMN if turned else GREENS, 0.14),
        _pick(rng, ((0.14, 0.10, 0.07), (0.20, 0.17, 0.14)), 0.15),
        int(rng.integers(1 << 31)),
    )


def _people(
    rng: np.random.Generator, camera: Camera, street: Street, others: list[Car | Tree]
) -> list[Person]:
    """Walkers on the pavements, alone or in pairs, and on the zebra crossing."""
    places: list[tuple[float, float, float]] = []
    for right in (False, True):
        side, sign = street.side(right), 1.0 if right else -1.0
        inner = street.half_width + 0.5 + side.verge
        for _ in range(int(rng.integers(1, 5))):
            z = 5.8 + 16.0 * float(rng.random()) ** 1.4
            s = sign * (inner + float(rng.uniform(0.2, side.pavement - 0.5)))
            places.append((z, s, float(rng.uniform(0, 0.5))))
            if rng.random() < 0.35:
                shift = sign * float(rng.uniform(0.55, 0.75))
                places.append((z + float(rng.uniform(-0.3, 0.3)), s - shift, 0.2))
    if street.zebra > 0:
        for _ in range(int(rng.integers(1, 4))):
            z = street.zebra + float(rng.uniform(-1.0, 1.0))
            places.append((z, float(rng.uniform(-1, 1)) * street.half_width * 0.8, 0.95))
    elif rng.random() < 0.25:
        places.append((float(rng.uniform(8, 18)), float(rng.uniform(-1, 1)) * 2.5, 0.9))
    people = []
    for z, s, turn in places:
        x = _at(street, z, s)
        if all(abs(x - o.x) > 1.5 or abs(z - o.z) > 3.2 for o in others if isinstance(o, Car)):
            people.append(_person(rng, x, z, turn))
    return people


def _person(rng: np.random.Generator, x: float, z: float, turn: float) -> Person:
    child = rng.random() < 0.12
    return Person(
        x,
        z,
        float(rng.uniform(1.15, 1.4) if child else rng.uniform(1.6, 1.9)),
        float(rng.uniform(-1, 1)),
        float(np.clip(turn + rng.normal(0, 0.15), 0, 1)),
        int(rng.choice([-1, 1])),
        _pick(rng, CLOTHES, 0.2),
        _pick(rng, TROUSERS, 0.2),
        _pick(rng, SKINS, 0.12),
        _pick(rng, HAIRS, 0.15),
        float(rng.uniform(0.12, 0.24)) if rng.random() < 0.3 else 0.0,
        bool(rng.random() < 0.3),
    )
