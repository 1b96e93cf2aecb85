"""What the papers of DeepMask, InstanceFCN, FCIS and MNC fix, beyond every model's contract."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models import create_model
from segcore.models.detection.boxes import box_iou
from segcore.models.detection.cascade import BOX_GRADIENT, mask_labels, match_again, refine
from segcore.models.detection.heads import WideLinear
from segcore.models.detection.roi import DrawnRoIs
from segcore.models.detection.voting import VotingOptions, vote_detections
from segcore.models.detection.windows import (
    AWAY,
    canonical_windows,
    crop_windows,
    negative_windows,
    positive_windows,
)
from segcore.models.instance.deepmask import CANONICAL, SeparateHeads, SharedHeads
from segcore.models.instance.mnc import CascadeHeads

OBJECTS = torch.tensor([[20.0, 30, 60, 50], [70, 10, 90, 40]])
TINY_MNC = {"backbone": "resnet18", "hidden": 16, "mask_hidden": 8, "mask_size": 8}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def squares(*boxes: tuple[int, int, int, int], side: int = 64) -> dict[str, Tensor]:
    """A target of filled boxes of label 1."""
    masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.ones(len(boxes), dtype=torch.int64)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": corners, "labels": labels, "masks": masks}


def test_deepmask_as_released_has_the_released_count() -> None:
    with torch.device("meta"):
        model = create_model(
            "deepmask", num_classes=2, backbone="resnet50", heads="shared", input_size=160
        )
    assert count(model) == 17_363_713


@pytest.mark.parametrize("kind", [SeparateHeads, SharedHeads])
def test_deepmask_heads_are_fully_convolutional(kind: type[SharedHeads]) -> None:
    torch.manual_seed(0)
    heads = kind(8, 4, 0.5).eval()
    x = torch.randn(1, 8, 6, 7)
    scores, codes = heads(x)
    assert scores.shape == (1, 3, 4)
    for top, left in ((0, 0), (2, 3), (1, 2)):
        score, code = heads(x[:, :, top : top + 4, left : left + 4])
        torch.testing.assert_close(score[0, 0, 0], scores[0, top, left])
        torch.testing.assert_close(code[0, :, 0, 0], codes[0, :, top, left])


def test_deepmask_score_branch_pools_by_two_as_in_the_paper() -> None:
    torch.manual_seed(0)
    heads = SeparateHeads(4, 4, 0.5).eval()
    x = torch.randn(2, 4, 4, 4)
    dense = heads.score[1]
    by_hand = F.linear(F.max_pool2d(x, 2).flatten(1), dense.weight.flatten(1), dense.bias)
    torch.testing.assert_close(heads.score[:2](x).flatten(1), by_hand)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_windows_are_near_their_object_or_away_from_all(seed: int) -> None:
    torch.manual_seed(seed)
    positive, owner = positive_windows(OBJECTS, 12, CANONICAL)
    canonical = canonical_windows(OBJECTS, CANONICAL)
    sides = (positive[:, 2:] - positive[:, :2])[:, 0]
    centres = (positive[:, :2] + positive[:, 2:]) / 2
    octaves = (sides / canonical[owner, 2]).log2().abs()
    assert octaves.max() <= 0.2501
    shift = (centres - canonical[owner, :2]).abs().amax(1) / sides
    assert shift.max() <= 16 / 224 + 1e-4
    negative = negative_windows(OBJECTS, (96, 128), 20, CANONICAL, sides=(32, 256))
    assert 0 < len(negative) <= 20
    sides = (negative[:, 2:] - negative[:, :2])[:, 0]
    centres = (negative[:, :2] + negative[:, 2:]) / 2
    distance = (centres[:, None] - canonical[:, :2]).abs().amax(2) / sides[:, None]
    octaves = (sides[:, None] / canonical[:, 2]).log2().abs()
    assert ((distance >= AWAY - 1e-4) | (octaves >= 0.9999)).all()


def test_canonical_crops_centre_the_object() -> None:
    target = squares((20, 24, 44, 40))
    centre, side = canonical_windows(target["boxes"], CANONICAL)[0].split([2, 1])
    window = torch.cat([centre - side / 2, centre + side / 2])[None]
    mask = crop_windows(target["masks"], window, 56, each=True)[0] >= 0.5
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    assert abs(len(columns) - 32) <= 1  # 128 of 224 px are 32 of 56
    assert abs(int(columns[0] + columns[-1]) - 55) <= 1
    assert abs(int(rows[0] + rows[-1]) - 55) <= 1


@pytest.mark.parametrize(("grid", "parameters"), [(3, 17_379_146), (7, 17_563_506)])
def test_instance_fcn_counts_of_other_grids(grid: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(create_model("instance_fcn", num_classes=2, grid=grid)) == parameters


@pytest.mark.parametrize(("classes", "maps"), [(21, 2058), (81, 7938)])
def test_fcis_has_the_published_maps(classes: int, maps: int) -> None:
    with torch.device("meta"):
        model = create_model("fcis", num_classes=classes)
    assert model.score.out_channels == maps
    assert model.box.out_channels == 2 * 4 * 49
    if classes == 21:  # the release has two logits an anchor
        assert count(model) + 9 * 513 == 51_856_392


def test_fcis_reads_class_and_mask_from_the_same_maps() -> None:
    torch.manual_seed(0)
    model = create_model("fcis", num_classes=3, backbone="resnet18", hidden=8, grid=3, roi_size=6)
    maps, box_maps = torch.randn(1, 2 * 3 * 9, 5, 5), torch.randn(1, 8 * 9, 5, 5)
    scores = model.read(maps, box_maps, torch.tensor([[0.0, 0, 0, 80, 80]]))
    assert scores.logits.shape == (1, 3)
    assert scores.inside.shape == (1, 3, 6, 6)
    assert scores.codes.shape == (1, 4)
    louder = maps.view(1, 3, 2, 9, 5, 5).clone()
    louder[:, 2] += 10  # both maps of a class: its score rises, its mask stays
    again = model.read(louder.view_as(maps), box_maps, torch.tensor([[0.0, 0, 0, 80, 80]]))
    torch.testing.assert_close(again.inside, scores.inside, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.logits[:, 2], scores.logits[:, 2] + 10)


def test_mnc_counts_of_paper_and_release() -> None:
    with torch.device("meta"):
        paper = create_model("mnc", num_classes=21)
        release = create_model("mnc", num_classes=21, mask_size=21)
    # The release has two logits an anchor.
    assert count(paper) + 9 * 513 == 283_118_084
    assert count(release) + 9 * 513 == 283_029_933


def test_mnc_has_a_gradient_through_the_boxes() -> None:
    torch.manual_seed(0)
    heads = CascadeHeads(2, 3, mask_hidden=5, mask_size=6, hidden=4).double()
    features = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    boxes = torch.tensor([[10.3, 7.1, 71.7, 66.2], [20.9, 15.4, 88.1, 90.6]]).double()

    def outputs(boxes: Tensor) -> tuple[Tensor, ...]:
        out = heads(features, torch.cat([boxes.new_tensor([[0], [1]]), boxes], 1))
        return out.masks, out.logits, out.box_logits, out.codes

    boxes.requires_grad_()
    assert torch.autograd.gradcheck(outputs, boxes, eps=1e-7, atol=1e-5)
    (gradient,) = torch.autograd.grad(outputs(boxes)[0].square().sum(), boxes)
    assert (gradient != 0).all()


def test_mnc_masks_teach_the_boxes_of_the_rpn() -> None:
    torch.manual_seed(0)
    model = create_model("mnc", num_classes=2, proposals=20, rois_per_image=16, **TINY_MNC)
    losses = model([torch.randn(3, 64, 64)], [squares((8, 8, 40, 44))])
    losses["loss_mask_class_3"].backward()
    assert model.rpn.head.bbox_pred.weight.grad.abs().sum() > 0


def test_mnc_moves_boxes_within_their_images_and_clips_the_gradient() -> None:
    """The first box stays, the second leaves its image and is cut there."""
    codes = torch.zeros(2, 3, 4, requires_grad=True)
    shift = torch.tensor([[0.0, 0, 0, 0], [10.0, 0, 0, 0]])  # the second by its own width
    rois = torch.tensor([[0.0, 10, 10, 30, 30], [1, 20, 10, 40, 30]])
    moved = refine(codes + shift[:, None], rois, torch.tensor([1, 2]), [(64, 64), (32, 50)])
    torch.testing.assert_close(moved, torch.tensor([[0.0, 10, 10, 30, 30], [1, 40, 10, 50, 30]]))
    (1000 * moved).sum().backward()
    assert codes.grad is not None
    assert codes.grad.abs().max() == BOX_GRADIENT / 2
    assert codes.grad[0, 1, :2].eq(BOX_GRADIENT / 2).all()
    assert not codes.grad[0, 2].any()


def test_mnc_leaves_the_boxes_of_the_rpn_to_its_own_loss() -> None:
    """What categories and masks say of a box is less than what its regression says."""
    torch.manual_seed(0)
    model = create_model("mnc", num_classes=2, proposals=20, rois_per_image=16, **TINY_MNC)
    seen: list[Tensor] = []
    head = model.rpn.head.bbox_pred
    head.register_forward_hook(lambda *call: call[2].register_hook(seen.append) and None)
    losses = model([torch.randn(3, 64, 64)], [squares((8, 8, 40, 44))])
    (100 * sum(loss for name, loss in losses.items() if "rpn" not in name)).backward()
    assert 0 < seen[0].abs().max() <= BOX_GRADIENT


def test_a_step_of_adam_does_not_undo_a_wide_layer() -> None:
    torch.manual_seed(0)
    for inputs in (12_544, 50_176):
        layer, x = WideLinear(inputs, 4), torch.rand(8, inputs)
        before = layer(x)
        assert 0.5 < before.std() < 2
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        before.sum().backward()
        optimizer.step()
        assert (layer(x) - before).abs().max() < 0.5


def test_mnc_of_five_stages_shares_its_weights() -> None:
    torch.manual_seed(0)
    three = create_model("mnc", num_classes=3, stages=3, **TINY_MNC)
    five = create_model("mnc", num_classes=3, stages=5, **TINY_MNC)
    assert count(three) == count(five)
    images, targets = [torch.randn(3, 64, 64)], [squares((8, 8, 40, 44))]
    parts = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_mask_class"}
    rpn = {"loss_objectness", "loss_rpn_box_reg"}
    assert set(three(images, targets)) == rpn | {f"{part}_3" for part in parts}
    assert set(five(images, targets)) == rpn | {f"{p}_{stage}" for p in parts for stage in (3, 5)}
    with pytest.raises(OptionError, match="stages is 4"):
        create_model("mnc", num_classes=3, stages=4)


def test_moved_boxes_find_their_objects_again() -> None:
    targets = [squares((8, 8, 40, 40)), squares((2, 2, 20, 20), (30, 30, 60, 60))]
    targets[1]["labels"] = torch.tensor([1, 2])
    rois = torch.tensor([[0.0, 10, 10, 40, 40], [0, 40, 40, 60, 60], [1, 30, 28, 60, 60]])
    drawn = match_again(rois, targets)
    assert drawn.labels.tolist() == [1, 0, 2]
    assert drawn.boxes[2].tolist() == [30, 30, 60, 60]
    nothing = match_again(rois, [squares(), squares()])
    assert nothing.labels.tolist() == [0, 0, 0]


def test_a_mask_keeps_its_label_if_it_overlaps_by_half() -> None:
    targets = [squares((0, 0, 32, 32))]
    rois = torch.tensor([[0.0, 0, 0, 32, 32]] * 3 + [[0, 0, 0, 64, 64]])
    masks = torch.full((4, 8, 8), -1.0)
    masks[0, :, :5] = 1  # 5 of 8 columns
    masks[1, :, :3] = 1
    masks[3, :4, :4] = 1  # all of the object in a larger box
    drawn = DrawnRoIs(
        rois=rois,
        labels=torch.tensor([2, 2, 0, 2]),
        objects=torch.zeros(4, dtype=torch.int64),
        boxes=targets[0]["boxes"].expand(4, 4),
    )
    assert mask_labels(masks, drawn, targets).tolist() == [2, 0, 0, 2]


def test_voting_merges_what_overlaps_and_keeps_classes_apart() -> None:
    boxes = torch.tensor([[4.0, 4, 24, 24], [5, 4, 25, 24], [40, 40, 60, 60]])
    masks = torch.ones(3, 8, 8)
    masks[1, :4] = 0
    probabilities = torch.tensor([[0.1, 0.9, 0.0], [0.6, 0.4, 0.0], [0.2, 0.0, 0.8]])
    found = vote_detections(probabilities, boxes, masks, (64, 64), VotingOptions())
    assert found["labels"].tolist() == [1, 2]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.8]))
    # 0.9 of 1.3 votes are above 0.4, so the upper half stays.
    assert (found["masks"][0, 0, 6:22, 6:22] > 0.5).all()
    assert box_iou(found["boxes"], boxes[[0, 2]]).diagonal().min() > 0.9
    weak = vote_detections(probabilities, boxes, masks, (64, 64), VotingOptions(mask_threshold=0.8))
    assert not (weak["masks"][0, 0, 6:12, 6:22] > 0.5).any()
