"""Pictures of instance predictions: overlays, panels with misses and false alarms, sheets."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.data.instances import thing_labels
from segcore.inference import visualize
from segcore.inference.images import ImageArray
from segcore.inference.spec import PackageSpec
from segcore.metrics.masks import mask_iou, pack_masks
from segcore.tasks.instance.detections import Detections
from segcore.tasks.instance.drawing import Shape, color_of, crops, draw
from segcore.tasks.instance.predictor import InstancePrediction
from segcore.tasks.instance.targets import ObjectLabel
from segcore.tasks.sections import Shown

DRAWN_SCORE = 0.5  # objects below it are in figures and files, and would hide all others here
MATCHED = 0.5  # IoU
FOUND = (90, 170, 120)
MISSED = (255, 176, 0)
FALSE = (230, 40, 150)
CROWD = (120, 130, 150)
LEGEND = [("found", FOUND), ("missed", MISSED), ("false alarm", FALSE), ("crowd", CROWD)]


def overlay(image: ImageArray, prediction: InstancePrediction, spec: PackageSpec) -> Image.Image:
    """Every object of a score of `DRAWN_SCORE` or more in a colour of its own."""
    return draw(image, predicted_shapes(prediction.above(DRAWN_SCORE), spec.classes))


def predicted_shapes(prediction: InstancePrediction, classes: Sequence[str]) -> list[Shape]:
    """Objects with class and score; the score alone where there is less room."""
    rows = zip(
        prediction.detections.windows,
        prediction.classes.tolist(),
        prediction.scores.tolist(),
        strict=True,
    )
    return [
        Shape(mask, corner, color_of(i), (f"{classes[c]} {score:.2f}", f"{score:.2f}"), boxed=True)
        for i, ((mask, corner), c, score) in enumerate(rows)
    ]


def shown(prediction: InstancePrediction, spec: PackageSpec) -> list[Shown]:
    """The objects of `overlay` in their colours, with their scores."""
    drawn = prediction.above(DRAWN_SCORE)
    rows = zip(drawn.classes.tolist(), drawn.scores.tolist(), strict=True)
    return [
        Shown(spec.classes[c], color_of(i), f"{score:.2f}") for i, (c, score) in enumerate(rows)
    ]


def as_detections(
    label: ObjectLabel, things: Sequence[bool]
) -> tuple[Detections, NDArray[np.bool_]]:
    """The true objects as if they had been found, small ones first; which are crowds."""
    labels = thing_labels(things)
    seen = sorted((one for one in label.instances if one.area > 0), key=lambda one: one.area)
    boxes = np.array([one.bbox for one in seen], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found = Detections(
        boxes,
        np.array([labels[one.category] for one in seen], dtype=np.int64),
        np.ones(len(seen), dtype=np.float32),
        tuple(one.counts for one in seen),
        label.size,
    )
    return found, np.array([one.iscrowd for one in seen], dtype=bool)


def label_overlay(image: ImageArray, label: ObjectLabel, spec: PackageSpec) -> Image.Image:
    """The true objects, crowds in grey."""
    truth, crowd = as_detections(label, spec.things)
    classes = list(thing_labels(spec.things))
    shapes = []
    for i, ((mask, corner), number) in enumerate(
        zip(truth.windows, truth.labels.tolist(), strict=True)
    ):
        words = "crowd" if crowd[i] else spec.classes[classes[number - 1]]
        shapes.append(Shape(mask, corner, CROWD if crowd[i] else color_of(i), (words,)))
    return draw(image, shapes)


def panel(
    image: ImageArray, label: ObjectLabel, prediction: InstancePrediction, spec: PackageSpec
) -> Mapping[str, Image.Image]:
    """Image, label, prediction, what was missed and what is false, and these as crops."""
    shown = prediction.above(DRAWN_SCORE)
    found, missed, false, crowds = judge(shown, label, spec)
    grey = np.array(Image.fromarray(visualize.as_rgb(image)).convert("L"))[:, :, None]
    errors = draw((0.6 * grey + 60).astype(np.uint8), [*missed, *false, *found, *crowds], tint=0.3)
    worst = sorted(missed, key=lambda shape: -int(shape.mask.sum()))
    return {
        "image": Image.fromarray(visualize.as_rgb(image)),
        "label": label_overlay(image, label, spec),
        "prediction": overlay(image, prediction, spec),
        "errors": errors,
        "misses and false alarms": crops(
            image,
            alternate(worst, false),
            size=(image.shape[0], image.shape[1]),
            nothing="no miss, no false alarm",
        ),
    }


def judge(
    prediction: InstancePrediction, label: ObjectLabel, spec: PackageSpec
) -> tuple[list[Shape], list[Shape], list[Shape], list[Shape]]:
    """True objects that were found and that were missed, false alarms by falling score, crowds.

    By falling score each prediction takes the object of its class that it overlaps most, at an IoU
    of `MATCHED` or more.
    """
    truth, crowd = as_detections(label, spec.things)
    pred = prediction.detections
    iou = mask_iou(
        pack_masks(pred.scored()["masks"]), pack_masks(truth.scored()["masks"]), crowd
    ).reshape(len(pred), len(truth))
    if not pred.class_agnostic:
        iou = np.where(pred.labels[:, None] == truth.labels, iou, 0.0)
    taken = np.zeros(len(truth), dtype=bool)
    alarms = []
    for place, row in enumerate(iou):
        best = int(np.where(taken, 0.0, row).argmax()) if row.size else -1
        if best < 0 or taken[best] or row[best] < MATCHED:
            alarms.append(place)
        elif not crowd[best]:
            taken[best] = True
    things = list(thing_labels(spec.things))

    def shape(of: Detections, place: int, color: tuple[int, int, int], words: str) -> Shape:
        return Shape(*of.windows[place], color, (words,) if words else ())

    def name(place: int) -> str:
        return spec.classes[things[int(truth.labels[place]) - 1]]

    return (
        [shape(truth, i, FOUND, "") for i in np.flatnonzero(taken & ~crowd).tolist()],
        [shape(truth, i, MISSED, name(i)) for i in np.flatnonzero(~taken & ~crowd).tolist()],
        [shape(pred, i, FALSE, f"{pred.scores[i]:.2f}") for i in alarms],
        [shape(truth, i, CROWD, "crowd") for i in np.flatnonzero(crowd).tolist()],
    )


def alternate(first: Sequence[Shape], second: Sequence[Shape]) -> list[Shape]:
    """One of each in turn, then the rest."""
    pairs = zip(first, second, strict=False)
    short = min(len(first), len(second))
    return [shape for pair in pairs for shape in pair] + [*first[short:], *second[short:]]


def contact_sheet(
    images: Sequence[ImageArray],
    predictions: Sequence[InstancePrediction],
    labels: Sequence[ObjectLabel],
    spec: PackageSpec,
    *,
    height: int = 300,
) -> Image.Image:
    """Rows of image, label where there are any, and prediction."""
    rows = []
    for index, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
        pictures = [Image.fromarray(visualize.as_rgb(image)), overlay(image, prediction, spec)]
        titles = ["image", "prediction"]
        if labels:
            pictures.insert(1, label_overlay(image, labels[index], spec))
            titles.insert(1, "label")
        rows.append(visualize.panel(pictures, () if index else titles, height=height))
    return visualize.stack(rows)
