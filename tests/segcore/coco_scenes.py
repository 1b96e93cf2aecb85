"""Random images with objects, and what the published evaluators of COCO say of them."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch

from segcore.inference import rle

Image = dict[str, Any]
Scene = list[tuple[Image, Image]]
SIZE = (110, 120)  # room for an object above 96 x 96


def filled(boxes: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Ellipses or rectangles [n, H, W] in the boxes."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    masks = np.zeros((len(boxes), *SIZE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        across, down = 2 * (x - x1) / (x2 - x1) - 1, 2 * (y - y1) / (y2 - y1) - 1
        inside = np.maximum(abs(across), abs(down)) if rng.random() < 0.5 else across**2 + down**2
        mask[inside <= 1] = 1
    return torch.from_numpy(masks)


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    side = rng.choice([1, 4, 20, 32, 33, 50, 96, 100], count)
    sides = np.stack([side, side + rng.integers(0, 6, count)], 1)
    corner = rng.integers(0, np.array(SIZE[::-1]) - sides + 1)
    return np.concatenate([corner, corner + sides], 1).astype(np.float32)


def random_image(
    rng: np.random.Generator, most: int = 14, classes: int = 3, tied: bool = True
) -> tuple[Image, Image]:
    """A prediction that copies, moves and invents objects, and its target with crowds."""
    n, m = rng.integers(0, 7), rng.integers(0, most + 1)
    boxes = random_boxes(n, rng)
    labels = rng.integers(1, classes + 1, n)
    guesses, guessed = random_boxes(m, rng), rng.integers(1, classes + 1, m)
    for i in range(m):
        if n and rng.random() < 0.75:
            j = rng.integers(n)
            moved = boxes[j] + rng.choice([0, 0, 1, 2, 4], 4) * rng.choice([-1, 1], 4)
            inside = moved.min() >= 0 and (moved[2:] <= SIZE[::-1]).all()
            if inside and (moved[2:] > moved[:2]).all():
                guesses[i] = moved
            guessed[i] = labels[j] if rng.random() < 0.9 else guessed[i]
    scores = rng.integers(1, 6, m) / 5 if tied else rng.permutation(m) / 20 + 0.1
    masks = filled(boxes, rng)
    target = {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(labels),
        "masks": masks,
        "iscrowd": torch.from_numpy((rng.random(n) < 0.2).astype(np.uint8)),
        "area": masks.sum((1, 2)).float(),
    }
    pred = {
        "boxes": torch.from_numpy(guesses),
        "labels": torch.from_numpy(guessed),
        "scores": torch.from_numpy(scores.astype(np.float32)),
        "masks": filled(guesses, rng),
    }
    return pred, target


def random_scene(seed: int, images: int = 4, **options: Any) -> Scene:
    rng = np.random.default_rng(seed)
    return [random_image(rng, **options) for _ in range(images)]


def annotation(image: int, number: int, objects: Image, i: int) -> dict[str, Any]:
    x1, y1, x2, y2 = objects["boxes"][i].double().tolist()
    mask = objects["masks"][i].numpy().astype(bool)
    return {
        "id": number,
        "image_id": image,
        "category_id": int(objects["labels"][i]),
        "segmentation": {"size": list(mask.shape), "counts": rle.encode(mask)},
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }


def as_coco(scene: Scene) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scene as COCO's JSON of truths and of results."""
    truths: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (pred, target) in enumerate(scene, start=1):
        for i in range(len(target["labels"])):
            extra = {"area": float(target["area"][i]), "iscrowd": int(target["iscrowd"][i])}
            truths.append(annotation(image, len(truths) + 1, target, i) | extra)
        for i in range(len(pred["labels"])):
            score = {"score": float(pred["scores"][i])}
            results.append(annotation(image, len(results) + 1, pred, i) | score)
    pictures = [{"id": i + 1, "height": SIZE[0], "width": SIZE[1]} for i in range(len(scene))]
    names = [{"id": label, "name": str(label)} for label in range(1, 6)]
    return {"info": {}, "images": pictures, "categories": names, "annotations": truths}, results


def reference(
    scene: Scene, iou_type: str, library: str = "faster_coco_eval", caps: tuple[int, ...] = ()
) -> np.ndarray:
    """The twelve numbers of a published evaluator; class-agnostic with `caps` on detections."""
    module = pytest.importorskip(library + (".coco" if library == "pycocotools" else ""))
    if library == "pycocotools":
        from pycocotools.cocoeval import COCOeval as Evaluator
    else:
        Evaluator = module.COCOeval_faster
    truths, results = as_coco(scene)
    for result in results:
        if iou_type == "segm":  # else the area of the result would be taken of its box
            del result["bbox"]
        else:
            del result["segmentation"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = module.COCO()
        coco.dataset = truths
        coco.createIndex()
        evaluator = Evaluator(coco, coco.loadRes(results), iou_type)
        if caps:
            evaluator.params.useCats, evaluator.params.maxDets = 0, list(caps)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.array(evaluator.stats[:12])
