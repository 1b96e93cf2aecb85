"""Boxes, anchors, matching, pooling and masks, each beside a plain twin or torchvision's."""

from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from segcore.errors import OptionError, ShapeError
from segcore.models import create_model
from segcore.models.detection import boxes as box_parts
from segcore.models.detection.anchors import Anchors
from segcore.models.detection.images import Preparation
from segcore.models.detection.masks import crop_masks, paste_masks
from segcore.models.detection.matching import NEGATIVE, POSITIVE, match, sample
from segcore.models.detection.norms import FrozenBatchNorm2d
from segcore.models.detection.roi import DrawnRoIs, choose_for_masks
from segcore.models.detection.roi_pool import ROI_POOLS, pool_from_levels, roi_warp


def random_boxes(count: int, *, seed: int = 0, extent: float = 60) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * extent
    sides = 1 + torch.rand(count, 2, generator=generator) * extent
    return torch.cat([corner, corner + sides], dim=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 50), st.floats(0.1, 50))
def test_decode_inverts_encode(seed: int, a: float, b: float) -> None:
    boxes, reference = random_boxes(5, seed=seed), random_boxes(5, seed=seed + 1)
    weights = (a, a, b, b)
    code = box_parts.encode(boxes, reference, weights)
    torch.testing.assert_close(
        box_parts.decode(code, reference, weights), boxes, rtol=1e-4, atol=1e-3
    )


def test_iou_is_that_of_torchvision_and_zero_for_empty_boxes() -> None:
    a, b = random_boxes(6), random_boxes(9, seed=1)
    torch.testing.assert_close(box_parts.box_iou(a, b), torchvision.ops.box_iou(a, b))
    assert box_parts.box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_anchors_are_those_of_torchvision_also_where_a_level_was_rounded() -> None:
    sizes = ((8, 12), (16, 24), (32, 48))
    features = [torch.zeros(1, 1, *s) for s in ((24, 40), (12, 20), (3, 5))]
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    expected = theirs(ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)]), features)[0]
    assert torch.equal(torch.cat(Anchors(sizes)(features, (96, 160))), expected)
    with pytest.raises(OptionError, match="anchor_sizes"):
        Anchors(((8,), (16, 32)))
    with pytest.raises(OptionError, match="2 levels, neck 'fpn' has 5"):
        create_model("mask_rcnn", num_classes=2, anchor_sizes=((8,), (16,)))


def test_match_rescues_the_best_candidate_of_each_object_and_its_ties() -> None:
    absent = [0.9] * 4
    iou = torch.tensor(
        [
            [[0.8, 0.5, 0.1, 0.0], [0.0, 0.2, 0.2, 0.0], absent],
            [[0.0, 0.0, 0.0, 0.0], absent, absent],
        ]
    )
    present = torch.tensor([[True, True, False], [True, False, False]])
    index, kind = match(iou.clone(), present, high=0.7, low=0.3)
    assert kind.tolist() == [[1, -1, 0, 0], [0, 0, 0, 0]]
    index, kind = match(iou.clone(), present, high=0.7, low=0.3, rescue=True)
    # An anchor that is rescued keeps the object that it overlaps most; nothing rescues at 0.
    assert kind.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert index[0, :3].tolist() == [0, 0, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.floats(0, 1))
def test_sample_draws_as_many_as_it_says(
    positives: int, negatives: int, size: int, share: float
) -> None:
    row = [POSITIVE] * positives + [NEGATIVE] * negatives + [-1] * (1 + 80 - positives - negatives)
    kind = torch.tensor([row, row[::-1]], dtype=torch.int8)
    drawn_positive, drawn_negative = sample(kind, size, share)
    wanted = min(positives, int(size * share))
    assert drawn_positive.sum(1).tolist() == [wanted] * 2
    assert drawn_negative.sum(1).tolist() == [min(negatives, size - wanted)] * 2
    assert (kind[drawn_positive] == POSITIVE).all()
    assert (kind[drawn_negative] == NEGATIVE).all()


def slow_warp(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """The definition, position by position."""
    out = torch.zeros(len(rois), features.shape[1], 2 * size, 2 * size, dtype=features.dtype)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        for v in range(2 * size):
            for u in range(2 * size):
                x = (x1 + u * (x2 - x1) / (2 * size)) * scale
                y = (y1 + v * (y2 - y1) / (2 * size)) * scale
                for row in range(features.shape[2]):
                    for column in range(features.shape[3]):
                        weight = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                        out[r, :, v, u] += weight * features[int(image), :, row, column]
    return nn.functional.max_pool2d(out, 2)


def test_warp_is_its_definition_and_differentiable_in_features_and_boxes() -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 2, 6, 5, dtype=torch.double, requires_grad=True)
    rois = torch.tensor([[1, 1.3, 2.1, 9.7, 8.2], [0, -3.2, 1.1, 7.3, 15.9], [1, 0.3, 4.3, 5, 6.1]],
                        dtype=torch.double)  # fmt: skip
    with torch.no_grad():
        expected = slow_warp(features, rois, 2, 0.5)
    torch.testing.assert_close(roi_warp(features, rois, 2, 0.5), expected)
    box = rois[:, 1:].clone().requires_grad_()

    def of_boxes(f: Tensor, b: Tensor) -> Tensor:
        return roi_warp(f, torch.cat([rois[:, :1], b], dim=1), 2, 0.5)

    assert torch.autograd.gradcheck(of_boxes, (features, box))


def test_align_from_levels_is_that_of_torchvision() -> None:
    torch.manual_seed(0)
    features = [torch.rand(2, 4, 256 // s, 256 // s) for s in (4, 8, 16, 32)]
    boxes = [random_boxes(12, extent=250), random_boxes(5, seed=1)]
    theirs = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = {str(i): f for i, f in enumerate(features)}
    expected = theirs(named, boxes, [(256, 256)] * 2)
    rois = box_parts.to_rois(boxes)
    found, back = pool_from_levels("align", features, [4, 8, 16, 32], rois, 7, aligned=False)
    torch.testing.assert_close(found[back], expected)


@pytest.mark.parametrize("kind", ROI_POOLS)
def test_poolings_of_no_box_stay_in_the_graph(kind: str) -> None:
    features = [torch.rand(2, 4, 16, 16, requires_grad=True), torch.rand(2, 4, 8, 8)]
    pooled, _ = pool_from_levels(kind, features, [4, 8], torch.zeros(0, 5), 7)
    assert pooled.shape == (0, 4, 7, 7)
    assert pooled.requires_grad


def slow_paste(mask: Tensor, box: list[float], size: tuple[int, int]) -> Tensor:
    """One mask, pixel by pixel."""
    out = torch.zeros(size)
    cells = len(mask)
    x1, y1, x2, y2 = box
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = column + 0.5, row + 0.5
            if not (x1 < x < x2 and y1 < y < y2):
                continue
            u = min(max((x - x1) / (x2 - x1) * cells - 0.5, 0), cells - 1)
            v = min(max((y - y1) / (y2 - y1) * cells - 0.5, 0), cells - 1)
            for i in range(cells):
                for j in range(cells):
                    weight = max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j))
                    out[row, column] += weight * mask[i, j]
    return out


def test_paste_is_its_definition() -> None:
    torch.manual_seed(0)
    masks = torch.rand(4, 4, 4)
    boxes = torch.tensor([[2.3, 1.1, 9.2, 7.9], [-4, -3, 30, 25], [5, 5, 6, 6], [3, 3, 3, 3]])
    expected = [slow_paste(m, b, (12, 14)) for m, b in zip(masks, boxes.tolist(), strict=True)]
    torch.testing.assert_close(paste_masks(masks, boxes, (12, 14)), torch.stack(expected))
    assert expected[2][5, 5] > 0  # a one-pixel object has its pixel


def test_paste_unaligned_is_that_of_torchvision() -> None:
    torch.manual_seed(0)
    masks, boxes = torch.rand(6, 28, 28), random_boxes(6)
    boxes[0] = torch.tensor([3.0, 3.0, 3.4, 3.2])
    boxes[1] = torch.tensor([-5.0, -3.0, 140.0, 150.0])
    expected = paste_masks_in_image(masks[:, None], boxes, (90, 100))[:, 0]
    torch.testing.assert_close(paste_masks(masks, boxes, (90, 100), aligned=False), expected)


@pytest.mark.parametrize("aligned", [True, False])
def test_crop_reads_as_roi_align_does(aligned: bool) -> None:
    torch.manual_seed(0)
    masks = (torch.rand(3, 90, 100) > 0.5).byte()
    index, boxes = torch.tensor([0, 2, 1, 1]), random_boxes(4, extent=40)
    rois = torch.cat([index[:, None].float(), boxes], dim=1)
    expected = torchvision.ops.roi_align(masks[:, None].float(), rois, 14, 1.0, 2, aligned)[:, 0]
    torch.testing.assert_close(crop_masks(masks, index, boxes, 14, aligned=aligned), expected)


def test_a_mask_cropped_to_its_box_and_pasted_back_is_itself() -> None:
    masks = torch.zeros(2, 40, 50, dtype=torch.uint8)
    masks[0, 5:22, 7:31] = 1
    masks[1, 39, 49] = 1
    boxes = torch.tensor([[7.0, 5.0, 31.0, 22.0], [49.0, 39.0, 50.0, 40.0]])
    cropped = crop_masks(masks, torch.arange(2), boxes, 28)
    assert torch.equal(paste_masks(cropped, boxes, (40, 50)) > 0.5, masks.bool())


def test_masks_are_drawn_per_image() -> None:
    labels = torch.tensor([1, 0, 2, 1, 1, 0, 1])
    rois = torch.zeros(7, 5)
    rois[4:, 0] = 2
    drawn = DrawnRoIs(rois, labels, labels, torch.zeros(7, 4))
    assert choose_for_masks(drawn, None).tolist() == [0, 2, 3, 4, 6]
    chosen = choose_for_masks(drawn, 2)
    assert (rois[chosen, 0] == 0).sum() == 2
    assert chosen[2:].tolist() == [4, 6]
    assert (labels[chosen] > 0).all()


def test_preparation_does_as_torchvisions_transform() -> None:
    torch.manual_seed(0)
    images = [torch.rand(3, 50, 70), torch.rand(3, 61, 40)]
    options: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    theirs = torchvision.models.detection.transform.GeneralizedRCNNTransform(64, 80, **options)
    expected, _ = theirs([image.clone() for image in images])
    ours = Preparation(3, min_size=64, max_size=80, **options)
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 35.0, 25.0]]),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": torch.ones(1, 50, 70, dtype=torch.uint8),
    }
    other = {**target, "masks": torch.ones(1, 61, 40, dtype=torch.uint8)}
    batch, targets = ours(images, [target, other], training=True)
    torch.testing.assert_close(batch.tensor, expected.tensors)
    assert batch.sizes == expected.image_sizes
    height, width = batch.sizes[0]
    assert targets[0]["masks"].shape == (1, height, width)
    torch.testing.assert_close(
        targets[0]["boxes"], torch.tensor([[0.0, 0.0, width / 2, height / 2]])
    )
    with pytest.raises(OptionError, match="image_mean has 2 values for 3 channels"):
        Preparation(3, image_mean=(0.5, 0.5))
    with pytest.raises(ShapeError, match="expected"):
        ours(images, [target, target], training=True)


def test_enlarged_images_have_results_in_their_own_pixels() -> None:
    images = [torch.rand(3, 40, 56)]
    target = {
        "boxes": torch.tensor([[4.0, 6, 20, 30]]),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": torch.ones(1, 40, 56, dtype=torch.uint8),
    }
    batch, prepared = Preparation(enlarge=3.0)(images, [target], training=True)
    assert batch.sizes == [(120, 168)]
    assert batch.originals == [(40, 56)]
    assert prepared[0]["boxes"].tolist() == [[12, 18, 60, 90]]
    assert prepared[0]["masks"].shape == (1, 120, 168)
    with pytest.raises(OptionError, match="enlarge is 2 and min_size 64"):
        Preparation(enlarge=2, min_size=64)
    with pytest.raises(OptionError, match="enlarge is 0"):
        Preparation(enlarge=0)


def test_frozen_norm_is_batch_norm_in_eval() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm(torch.randn(8, 4, 5, 5) * 3 + 1)
    nn.init.normal_(norm.weight)
    frozen = FrozenBatchNorm2d(4)
    frozen.load_state_dict(norm.state_dict())
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert list(frozen.parameters()) == []
