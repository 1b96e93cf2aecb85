"""Mask R-CNN: torchvision's weights give its detections, variants train, torchvision's plugs in."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from segcore.errors import OptionError
from segcore.models import create_model
from segcore.models.instance.mask_rcnn import TORCHVISION, from_torchvision

FEW = {
    "box_batch_size_per_image": 16,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 40,
    "box_detections_per_img": 20,
}
SMALL = {"backbone": "resnet18", "fpn_channels": 16, "box_hidden": 16, **FEW}


def test_weights_of_torchvision_give_its_detections() -> None:
    torch.manual_seed(0)
    options = {"min_size": 96, "max_size": 160, "box_score_thresh": 0.005, **FEW}
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, **options
    )
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.device("meta"):
        ours = create_model("mask_rcnn", num_classes=91, **{**TORCHVISION, **options})
    # With weights, torchvision's own builder freezes the norms and counts as many.
    assert sum(p.numel() for p in ours.parameters()) == 44_401_393
    ours.load_state_dict(from_torchvision(theirs.state_dict()), assign=True)
    images = [torch.rand(3, 100, 133), torch.rand(3, 120, 90)]
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    for own, other in zip(found, expected, strict=True):
        assert len(own["scores"]) > 10
        assert torch.equal(own["labels"], other["labels"])
        for key in ("boxes", "scores", "masks"):
            torch.testing.assert_close(own[key], other[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"neck": "c4"}, {"neck": "c4", "norm": "frozen"}, {"roi_pool": "pool"}, {"roi_pool": "warp"},
     {"norm": "group", "head_norm": "group"}, {"min_size": (64, 80), "max_size": 96},
     {"mask_batch_size_per_image": 1, "head_norm": "batch"}],
    ids=str,
)  # fmt: skip
def test_variants_of_mask_rcnn_train_and_detect(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model(
        "mask_rcnn", num_classes=2, in_channels=1, box_score_thresh=0.0, **{**SMALL, **options}
    )
    images = [torch.randn(1, 64, 70)]
    masks = torch.zeros(2, 64, 70, dtype=torch.uint8)
    masks[0, 10:40, 10:40] = masks[1, 30:60, 30:60] = 1
    target = {
        "boxes": torch.tensor([[10.0, 10, 40, 40], [30, 30, 60, 60]]),
        "labels": torch.ones(2, dtype=torch.int64),
        "masks": masks,
    }
    total = torch.stack(list(model(images, [target]).values())).sum()
    total.backward()
    kernels = [(k, p) for k, p in model.named_parameters() if p.dim() > 1]
    assert [k for k, p in kernels if p.grad is None or not p.grad.any()] == []
    with torch.no_grad():
        result = model.eval()(images)[0]
    assert result["masks"].shape == (len(result["scores"]), 1, 64, 70)
    assert len(result["scores"]) > 0


def test_unknown_values_are_refused() -> None:
    for option in ("neck", "norm", "head_norm", "roi_pool"):
        with pytest.raises(OptionError, match=f"{option} is 'wheels'|norm is 'wheels'"):
            create_model("mask_rcnn", num_classes=2, backbone="resnet18", **{option: "wheels"})
    with pytest.raises(OptionError, match="background counts"):
        create_model("mask_rcnn", num_classes=1)
    with pytest.raises(OptionError, match="takes a resnet"):
        create_model("mask_rcnn", num_classes=2, backbone="mobilenet_v2", neck="c4")


def test_torchvisions_mask_rcnn_plugs_in() -> None:
    torch.manual_seed(0)
    model = create_model(
        "torchvision:maskrcnn_resnet50_fpn_v2",
        num_classes=2,
        in_channels=1,
        box_score_thresh=0.0,
        **FEW,
    )
    images = [torch.randn(1, 64, 70), torch.randn(1, 80, 64)]
    sizes: list[torch.Size] = []
    model.backbone.register_forward_hook(lambda _m, args, _y: sizes.append(args[0].shape))  # type: ignore[operator,union-attr]
    targets = []
    for image in images:
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
        masks[:, 10:40, 10:40] = 1
        targets.append({"boxes": torch.tensor([[10.0, 10, 40, 40]] * 2), "masks": masks,
                        "labels": torch.ones(2, dtype=torch.int64),
                        "iscrowd": torch.tensor([0, 1], dtype=torch.uint8)})  # fmt: skip
    losses = model(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        results = model.eval()(images)
    assert sizes == [(2, 1, 96, 96)] * 2  # padded, not resized
    assert [r["masks"].shape[1:] for r in results] == [(1, 64, 70), (1, 80, 64)]
    with pytest.raises(OptionError, match="no option 'min_size'"):
        create_model("torchvision:maskrcnn_resnet50_fpn_v2", num_classes=2, min_size=800)
