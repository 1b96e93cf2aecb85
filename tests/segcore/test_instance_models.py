"""The contract of every registered instance and panoptic architecture.

A new one is tested by being listed in the registry; OPTIONS makes it small, STUFF its targets.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segcore.errors import OptionError, ShapeError
from segcore.models import create_model, list_models, model_card, model_options

NAMES = [name for name in list_models() if model_card(name).task in ("instance", "panoptic")]
CLASSES, STUFF = 3, 2
SIZES = [(64, 96), (80, 64)]
Target = dict[str, Tensor]

# Options that make a model cheap to test; a name without an entry is tested as it is.
OPTIONS: dict[str, dict[str, Any]] = {
    "mask_rcnn": {
        "backbone": "resnet18",
        "fpn_channels": 32,
        "box_hidden": 64,
        "box_batch_size_per_image": 64,
        "rpn_post_nms_top_n_train": 200,
        "rpn_post_nms_top_n_test": 100,
        "box_score_thresh": 0.0,
        "box_detections_per_img": 20,
    },
}
OPTIONS["watershed"] = {"base_channels": 16, "min_area": 1}
OPTIONS["deepmask"] = {
    "backbone": "resnet18",
    "heads": "shared",
    "input_size": 64,
    "mask_size": 28,
    "dropout": 0.0,
    "windows_per_image": 16,
    "scales": (0.71, 1.0, 1.41),
}
OPTIONS["instance_fcn"] = {
    "backbone": "resnet18",
    "grid": 3,
    "window": 9,
    "windows_per_image": 64,
    "scales": (1.0, 1.5),
}
OPTIONS["fcis"] = {
    "backbone": "resnet18",
    "hidden": 64,
    "grid": 3,
    "roi_size": 9,
    "proposals": 40,
    "rois_per_image": 64,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 20,
}
OPTIONS["mnc"] = {
    "backbone": "resnet18",
    "hidden": 64,
    "mask_hidden": 32,
    "mask_size": 14,
    "proposals": 30,
    "rois_per_image": 16,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 20,
}
OPTIONS["panoptic_fpn"] = {**OPTIONS["mask_rcnn"], "num_stuff": STUFF}
# Options of the overfitting test beside those.
OVERFIT: dict[str, dict[str, Any]] = {
    # Masks are cut at one half here, where the true border of a known picture lies.
    "deepmask": {"mask_threshold": 0.5, "scales": (1.0, 1.41, 2.0)},
    "instance_fcn": {"grid": 5, "window": 11, "scales": (1.7, 2.4)},
    # Its boxes are rounded to 16 px, so the objects are enlarged to some cells.
    "fcis": {
        "min_size": 224,
        "hidden": 128,
        "grid": 5,
        "roi_size": 15,
        "anchor_sizes": ((48, 80),),
    },
    "mnc": {"hidden": 128, "mask_hidden": 128, "anchor_sizes": ((16, 32),)},
}
# What proposal models (class-agnostic, judged by recall) are called.
PROPOSAL_MODELS = {"deepmask", "instance_fcn"} & set(NAMES)


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=CLASSES, **{**OPTIONS.get(name, {}), **options})


def target(
    size: tuple[int, int], boxes: list[list[int]], labels: list[int] | None = None
) -> Target:
    """Rectangles as objects; the rest is stuff 0 above and 1 below, a strip is ignored."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    semantic = torch.zeros(size, dtype=torch.int64)
    semantic[size[0] // 2 :] = 1
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
        semantic[y1:y2, x1:x2] = STUFF
    semantic[:, -3:] = 255
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1 + i % 2 for i in range(len(boxes))], dtype=torch.int64),
        "masks": masks,
        "iscrowd": torch.zeros(len(boxes), dtype=torch.uint8),
        "area": masks.flatten(1).sum(1).float(),
        "semantic": semantic,
    }


def batch() -> tuple[list[Tensor], list[Target]]:
    """Two images of unlike sizes with two objects each."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, *size, generator=generator) for size in SIZES]
    boxes = [[[8, 8, 40, 40], [50, 20, 90, 60]], [[5, 30, 45, 70], [20, 4, 60, 28]]]
    return images, [target(size, own) for size, own in zip(SIZES, boxes, strict=True)]


def train_once(model: nn.Module, images: list[Tensor], targets: list[Target]) -> Tensor:
    """The sum of the losses, all of them finite scalars, after its backward pass."""
    torch.manual_seed(0)
    model.train().zero_grad(set_to_none=True)
    losses = model(images, targets)
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values()), losses
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    wrong = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert wrong == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return total


@pytest.fixture(scope="module", params=NAMES)
def built(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, build(request.param)


def test_a_gradient_reaches_every_kernel(built: tuple[str, nn.Module]) -> None:
    _, model = built
    train_once(model, *batch())
    kernels = [(k, p) for k, p in model.named_parameters() if p.requires_grad and p.dim() > 1]
    assert [key for key, p in kernels if not p.grad.any()] == []  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ["none", "one empty", "pixel", "crowd", "300"])
def test_losses_are_finite_and_attached(built: tuple[str, nn.Module], case: str) -> None:
    _, model = built
    images, targets = batch()
    if case == "none":
        targets = [target(size, []) for size in SIZES]
    elif case == "one empty":
        targets[0] = target(SIZES[0], [])
    elif case == "pixel":
        targets[0] = target(SIZES[0], [[95, 63, 96, 64]])
    elif case == "crowd":
        targets[0]["iscrowd"][:] = 1
    else:
        places = torch.randint(0, 60, (300, 2), generator=torch.Generator().manual_seed(1)).tolist()
        targets[0] = target(SIZES[0], [[x, y, x + 4, y + 4] for x, y in places])
    train_once(model, images, targets)


def test_targets_are_left_alone(built: tuple[str, nn.Module]) -> None:
    _, model = built
    images, targets = batch()
    before = [{key: value.clone() for key, value in t.items()} for t in targets]
    train_once(model, images, targets)
    for old, new in zip(before, targets, strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)


def check_detections(name: str, results: list[Target], sizes: list[tuple[int, int]]) -> None:
    for result, (height, width) in zip(results, sizes, strict=True):
        count = len(result["scores"])
        assert result["boxes"].shape == (count, 4)
        assert result["labels"].shape == (count,)
        assert result["labels"].dtype == torch.int64
        assert result["masks"].shape == (count, 1, height, width)
        assert result["masks"].dtype == torch.float32
        assert all(result[k].isfinite().all() for k in ("boxes", "scores", "masks"))
        assert ((result["masks"] >= 0) & (result["masks"] <= 1)).all()
        assert (result["scores"].diff() <= 0).all()
        x, y = result["boxes"][:, 0::2], result["boxes"][:, 1::2]
        assert ((x >= 0) & (x <= width)).all()
        assert ((y >= 0) & (y <= height)).all()
        last = 1 if name in PROPOSAL_MODELS else CLASSES - 1
        assert ((result["labels"] >= 1) & (result["labels"] <= last)).all()
        if model_card(name).task == "panoptic":
            assert result["semantic"].shape == (STUFF + 1, height, width)
            assert result["semantic"].isfinite().all()


def test_eval_keeps_the_contract_and_survives_a_state_dict(built: tuple[str, nn.Module]) -> None:
    name, model = built
    # A twin without memory of its own: what its state_dict lacks cannot be computed.
    with torch.device("meta"):
        twin = build(name)
    twin.load_state_dict(model.state_dict(), assign=True)
    images, _ = batch()
    with torch.no_grad():
        results, again = model.eval()(images), twin.eval()(images)
    check_detections(name, results, SIZES)
    assert any(len(result["scores"]) for result in results)
    for result, other in zip(results, again, strict=True):
        assert all(torch.equal(result[key], other[key]) for key in result)


def test_bf16_autocast_is_finite(built: tuple[str, nn.Module]) -> None:
    name, model = built
    images, targets = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train_once(model, images, targets)
        with torch.no_grad():
            check_detections(name, model.eval()(images), SIZES)


def test_refuses_what_does_not_fit(built: tuple[str, nn.Module]) -> None:
    _, model = built
    images, targets = batch()
    model.train()
    with pytest.raises(ShapeError, match="in_channels=2"):
        model([image[:2] for image in images], targets)
    with pytest.raises(ShapeError, match="give a list of float"):
        model([image.byte() for image in images], targets)
    with pytest.raises(ShapeError, match="one dict an image"):
        model(images, targets[:1])
    with pytest.raises(ShapeError, match="no area"):
        model(images, [{**t, "boxes": t["boxes"] * 0} for t in targets])


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_published_one(name: str) -> None:
    card = model_card(name)
    for num_classes, expected in {**card.counts, 21: card.parameters}.items():
        with torch.device("meta"):
            model = create_model(name, num_classes=num_classes)
        assert sum(p.numel() for p in model.parameters()) == expected, num_classes


@pytest.mark.parametrize("name", NAMES)
def test_card_and_options(name: str) -> None:
    card = model_card(name)
    assert card.name == name
    assert "" not in (card.title, card.paper)
    assert name in list_models(card.task)
    with pytest.raises(OptionError, match="wheels"):
        create_model(name, num_classes=2, wheels=4)
    assert not {"num_classes", "in_channels", "pretrained"} & set(model_options(name))
    assert set(OPTIONS.get(name, {})) <= set(model_options(name))


def shapes() -> tuple[list[Tensor], list[Target]]:
    """Four 96 px images of discs (label 1) and squares (label 2) on noise, some touching."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    images, targets = [], []
    for index in range(4):
        image = 0.1 * torch.randn(3, 96, 96, generator=generator)
        masks, labels = [], []
        for k in range(4):
            y, x = 24 + 46 * (k // 2) + index, 22 + 44 * (k % 2) + 2 * index
            radius, label = 9 + 3 * ((k + index) % 3), 1 + (k + index) % 2
            far = ((rows - y).abs(), (columns - x).abs())
            inside = far[0] ** 2 + far[1] ** 2 <= radius**2
            mask = inside if label == 1 else torch.maximum(*far) < radius
            image[label - 1, mask] += 1.0
            image[2, mask] -= 0.2 * k
            masks.append(mask.byte())
            labels.append(label)
        images.append(image)
        targets.append(from_masks(torch.stack(masks), torch.tensor(labels)))
    return images, targets


def from_masks(masks: Tensor, labels: Tensor) -> Target:
    boxes = []
    for mask in masks:
        y, x = mask.nonzero(as_tuple=True)
        boxes.append([int(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)])
    semantic = torch.zeros(masks.shape[1:], dtype=torch.int64)
    semantic[:, 48:] = 1
    semantic[masks.bool().any(dim=0)] = STUFF
    return {**target((96, 96), boxes, labels.tolist()), "masks": masks, "semantic": semantic}


def mask_iou(result: Target, truth: Target) -> np.ndarray[Any, np.dtype[np.float64]]:
    a = (result["masks"].flatten(1) > 0.5).double()
    b = truth["masks"].flatten(1).double()
    inter = a @ b.T
    return (inter / (a.sum(1)[:, None] + b.sum(1) - inter).clamp(min=1)).numpy()


def average_precision(results: list[Target], truths: list[Target]) -> float:
    """AP at IoU 0.5, mean over the classes: area under the enveloped precision-recall curve."""
    values = []
    for label in range(1, CLASSES):
        found: list[tuple[float, bool]] = []
        objects = 0
        for result, truth in zip(results, truths, strict=True):
            here, there = result["labels"] == label, truth["labels"] == label
            own = {k: result[k][here] for k in ("scores", "masks")}
            iou = mask_iou(own, {"masks": truth["masks"][there]})
            objects += iou.shape[1]
            for score, row in zip(own["scores"].tolist(), iou, strict=True):
                best = int(row.argmax()) if row.size else -1
                hit = best >= 0 and row[best] > 0.5
                found.append((score, bool(hit)))
                if hit:
                    iou[:, best] = 0
        hits = np.array([hit for _, hit in sorted(found, key=lambda f: -f[0])], dtype=float)
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        values.append(float((envelope * hits).sum() / objects))
    return float(np.mean(values))


def average_recall(results: list[Target], truths: list[Target]) -> float:
    """Recall of the 100 best proposals, mean over IoU 0.5:0.95."""
    best = [
        mask_iou({"masks": r["masks"][:100]}, t).max(axis=0, initial=0)
        for r, t in zip(results, truths, strict=True)
    ]
    flat = np.concatenate(best)
    return float(np.mean([flat >= t for t in np.arange(0.5, 1, 0.05)]))


def test_average_precision_of_known_cases() -> None:
    _, truths = shapes()
    perfect = [{**t, "scores": torch.linspace(1, 0.5, 4), "masks": t["masks"][:, None].float()}
               for t in truths]  # fmt: skip
    assert average_precision(perfect, truths) == pytest.approx(1)
    assert average_recall(perfect, truths) == pytest.approx(1)
    wrong = [{**p, "labels": 3 - p["labels"]} for p in perfect]
    assert average_precision(wrong, truths) == 0
    twice = [{k: torch.cat([p[k], p[k]]) for k in ("scores", "labels", "masks")} for p in perfect]
    assert 0.5 < average_precision(twice, truths) < 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_overfits_four_images(name: str) -> None:
    model = build(name, **OVERFIT.get(name, {}))
    images, targets = shapes()
    judge = average_recall if name in PROPOSAL_MODELS else average_precision
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    best = 0.0
    for step in range(400):
        model.train()
        total = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                best = max(best, judge(model.eval()(images), targets))
            if best > 0.8:
                return
    pytest.fail(f"reached {best:.3f} on four images")
