"""Pictures of panoptic predictions: stuff in its class's colour, things in shades of theirs."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.inference import visualize
from segcore.inference.images import ImageArray
from segcore.inference.spec import PackageSpec
from segcore.tasks.instance.drawing import GOLDEN, Color, Shape, crops, draw
from segcore.tasks.instance.pictures import CROWD, FALSE, FOUND, MISSED, alternate
from segcore.tasks.panoptic.segments import Panoptic, Segment
from segcore.tasks.sections import Shown

MATCHED = 0.5  # IoU: panoptic quality's
SHADE = 90  # of 255, how far a thing's colour goes from its class's
LEGEND = [("found", FOUND), ("missed", MISSED), ("false alarm", FALSE), ("crowd", CROWD)]


def overlay(image: ImageArray, prediction: Panoptic, spec: PackageSpec) -> Image.Image:
    """The image tinted by segment, things with contours and words."""
    return draw(image, shapes_of(prediction, spec))


def shapes_of(picture: Panoptic, spec: PackageSpec) -> list[Shape]:
    """Every segment, things first; things say their class and score."""
    shapes: list[Shape] = []
    for one in sorted(picture.segments, key=lambda one: not one.isthing):
        color = spec.palette[one.category]
        name = spec.classes[one.category]
        words: tuple[str, ...] = (name,)
        if one.isthing:
            color = CROWD if one.iscrowd else shade(color, one.id)
            if one.score is not None:
                words = (f"{name} {one.score:.2f}", f"{one.score:.2f}")
        shapes.append(shape_of(picture, one, color, words))
    return shapes


def shown(picture: Panoptic, spec: PackageSpec) -> list[Shown]:
    """The segments of `overlay` in their colours: scores of things, shares of all else."""
    found = []
    for one in sorted(picture.segments, key=lambda one: (not one.isthing, -one.area)):
        color = spec.palette[one.category]
        share = f"{one.area / picture.ids.size:.1%}"
        found.append(
            Shown(
                spec.classes[one.category],
                shade(color, one.id) if one.isthing else color,
                share if one.score is None else f"{one.score:.2f}",
            )
        )
    return found


def shape_of(picture: Panoptic, one: Segment, color: Color, words: tuple[str, ...]) -> Shape:
    """One segment as it is drawn."""
    rows, columns = picture.windows[one.id - 1]
    mask = picture.ids[rows, columns] == one.id
    return Shape(mask, (rows.start, columns.start), color, words)


def shade(color: Color, number: int) -> Color:
    """Colour of a thing: its class's, moved by steps that never come back."""
    moved = [
        min(255, max(0, round(value + SHADE * (2 * ((number * GOLDEN * step) % 1.0) - 1))))
        for value, step in zip(color, (1, 2, 3), strict=True)
    ]
    return moved[0], moved[1], moved[2]


def panel(
    image: ImageArray, truth: Panoptic, prediction: Panoptic, spec: PackageSpec
) -> Mapping[str, Image.Image]:
    """Image, label, prediction, what was missed and what is false, and these as crops."""
    found, missed, false = judge(prediction, truth, spec)
    crowds = [shape_of(truth, one, CROWD, ("crowd",)) for one in truth.segments if one.iscrowd]
    grey = np.array(Image.fromarray(visualize.as_rgb(image)).convert("L"))[:, :, None]
    base = (0.6 * grey + 60).astype(np.uint8)
    worst = sorted(missed, key=lambda shape: -int(shape.mask.sum()))
    return {
        "image": Image.fromarray(visualize.as_rgb(image)),
        "label": overlay(image, truth, spec),
        "prediction": overlay(image, prediction, spec),
        "errors": draw(base, [*missed, *false, *found, *crowds], tint=0.3),
        "misses and false alarms": crops(
            image,
            alternate(worst, sorted(false, key=lambda shape: -int(shape.mask.sum()))),
            size=(image.shape[0], image.shape[1]),
            nothing="no miss, no false alarm",
        ),
    }


def judge(
    prediction: Panoptic, truth: Panoptic, spec: PackageSpec
) -> tuple[list[Shape], list[Shape], list[Shape]]:
    """True segments that were found and that were missed, and false ones, as quality has it.

    Predicted pixels that are not labelled do not count; a prediction most of which is there, or on
    crowds of its class, is no false alarm.
    """
    n, m = len(truth.segments), len(prediction.segments)
    code = truth.ids.astype(np.int64) * (m + 1) + prediction.ids
    shared = np.bincount(code.ravel(), minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    categories = np.array([one.category for one in truth.segments], dtype=np.int64)
    own = np.array([one.category for one in prediction.segments], dtype=np.int64)
    crowd = np.array([one.iscrowd for one in truth.segments], dtype=bool)
    same = categories[:, None] == own
    inner, areas = shared[1:, 1:], shared[:, 1:].sum(0)
    union = areas - shared[0, 1:] + shared[1:].sum(1)[:, None] - inner
    matched = (inner > MATCHED * union) & same & ~crowd[:, None]
    ignored = shared[0, 1:] + (inner * (same & crowd[:, None])).sum(0)
    hits = matched.any(1)
    false = ~matched.any(0) & (2 * ignored <= areas)

    def shapes(picture: Panoptic, chosen: NDArray[np.bool_], color: Color) -> list[Shape]:
        return [
            shape_of(picture, one, color, (spec.classes[one.category],))
            for one, wanted in zip(picture.segments, chosen.tolist(), strict=True)
            if wanted
        ]

    return (
        shapes(truth, hits & ~crowd, FOUND),
        shapes(truth, ~hits & ~crowd, MISSED),
        shapes(prediction, false, FALSE),
    )


def contact_sheet(
    images: Sequence[ImageArray],
    predictions: Sequence[Panoptic],
    truths: Sequence[Panoptic],
    spec: PackageSpec,
    *,
    height: int = 300,
) -> Image.Image:
    """Rows of image, label where there are any, and prediction, above a legend."""
    rows = []
    for index, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
        pictures = [Image.fromarray(visualize.as_rgb(image)), overlay(image, prediction, spec)]
        titles = ["image", "prediction"]
        if truths:
            pictures.insert(1, overlay(image, truths[index], spec))
            titles.insert(1, "label")
        rows.append(visualize.panel(pictures, () if index else titles, height=height))
    width = max(row.width for row in rows)
    return visualize.stack([*rows, visualize.legend(spec.classes, spec.palette, width=width)])
