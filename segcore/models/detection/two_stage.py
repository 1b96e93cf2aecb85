"""A network that proposes boxes and then looks into them, from images to losses or detections."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from segcore.encoders import Encoder
from segcore.errors import OptionError
from segcore.models.blocks import check_choice
from segcore.models.detection.anchors import Anchors
from segcore.models.detection.heads import C4Heads, FPNHeads, Pooling
from segcore.models.detection.images import ImageBatch, Preparation, Target, resize_boxes
from segcore.models.detection.masks import paste_masks
from segcore.models.detection.necks import FPN, FPN_STRIDES, pyramid_encoder, split_resnet
from segcore.models.detection.norms import set_norm
from segcore.models.detection.roi import (
    RoIOptions,
    box_losses,
    choose_for_masks,
    detect,
    draw_rois,
    mask_loss,
)
from segcore.models.detection.roi_pool import ROI_POOLS
from segcore.models.detection.rpn import RPN, RPNOptions

NECKS = ("fpn", "c4")
FPN_ANCHORS = ((8,), (16,), (32,), (64,), (128,))
C4_ANCHORS = ((8, 16, 32, 64, 128),)


def pick(kind: type, options: Mapping[str, Any]) -> Any:
    """An options dataclass from the entries that carry its fields' names."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})


class TwoStage(nn.Module):
    """Backbone, neck, RPN and the heads of boxes and masks.

    Args:
        encoder: the backbone.
        neck: `FPN`, or None to read the encoder's last feature.
        rpn: over every map of the neck.
        heads: over the maps that boxes are read from.
        options: of the second stage.
        prepare: of images and targets.
    """

    def __init__(
        self,
        encoder: Encoder,
        neck: FPN | None,
        rpn: RPN,
        heads: FPNHeads | C4Heads,
        *,
        options: RoIOptions,
        prepare: Preparation,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.neck = neck
        self.rpn = rpn
        self.heads = heads
        self.options = options
        self.prepare = prepare

    def features(self, batch: ImageBatch) -> list[Tensor]:
        """Maps of the neck, finest first."""
        features = self.encoder(batch.tensor)
        if self.neck is None:
            return [features[-1]]
        levels: list[Tensor] = self.neck(features[-4:])
        return levels

    def losses(
        self, features: Sequence[Tensor], batch: ImageBatch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN; each reaches every parameter of its branch."""
        objects = [target["boxes"] for target in targets]
        found = self.rpn(features, batch.sizes, batch.padded, objects)
        drawn = draw_rois(found.boxes, targets, self.options)
        outputs = self.heads.box(features, drawn.rois)
        chosen = choose_for_masks(drawn, self.options.mask_batch_size_per_image)
        shared = None if outputs.shared is None else outputs.shared[chosen]
        logits = self.heads.mask(features, drawn.rois[chosen], shared)
        aligned = self.heads.pooling.aligned
        return {
            **found.losses,
            **box_losses(outputs.logits, outputs.codes, drawn, self.options.bbox_reg_weights),
            "loss_mask": mask_loss(logits, drawn, chosen, targets, aligned=aligned),
        }

    def detections(self, features: Sequence[Tensor], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Boxes, labels, scores and pasted masks [m, 1, H, W], in each image's own size."""
        found = self.rpn(features, batch.sizes, batch.padded)
        results = detect(self.heads, features, found.boxes, batch.sizes, self.options)
        aligned = self.heads.pooling.aligned
        for result, size, own in zip(results, batch.sizes, batch.originals, strict=True):
            result["boxes"] = resize_boxes(result["boxes"], size, own)
            pasted = paste_masks(result["masks"], result["boxes"], own, aligned=aligned)
            result["masks"] = pasted[:, None]
        return results


def two_stage_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `TwoStage` from the options of a builder.

    Args:
        options: num_classes, in_channels, pretrained, backbone, neck, norm, head_norm,
            fpn_channels, box_hidden, mask_convs, roi_pool, aligned, anchor_sizes, and the fields
            of `Preparation`, `RPNOptions` and `RoIOptions`.

    Raises:
        OptionError: a value that an option does not have, or anchors of other levels.
    """
    check_choice("neck", options["neck"], NECKS)
    check_choice("roi_pool", options["roi_pool"], ROI_POOLS)
    if options["num_classes"] < 2:
        raise OptionError(
            f"num_classes is {options['num_classes']}: background counts, so give at least 2"
        )
    build = _fpn_parts if options["neck"] == "fpn" else _c4_parts
    parts = build(options)
    return {**parts, "options": pick(RoIOptions, options), "prepare": pick(Preparation, options)}


def _fpn_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    channels, norm = options["fpn_channels"], options["head_norm"]
    check_choice("head_norm", norm, (None, "batch", "group"))
    encoder = pyramid_encoder(
        options["backbone"], options["in_channels"], pretrained=options["pretrained"]
    )
    set_norm(encoder, options["norm"])
    pooling = Pooling(options["roi_pool"], FPN_STRIDES, options["aligned"])
    return {
        "encoder": encoder,
        "neck": FPN(encoder.out_channels[-4:], channels, norm=norm),
        "rpn": _rpn(channels, options, FPN_ANCHORS),
        "heads": FPNHeads(
            channels,
            options["num_classes"],
            pooling=pooling,
            hidden=options["box_hidden"],
            mask_convs=options["mask_convs"],
            norm=norm,
        ),
    }


def _c4_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    encoder, stage, channels = split_resnet(
        options["backbone"], options["in_channels"], pretrained=options["pretrained"]
    )
    for part in (encoder, stage):
        set_norm(part, options["norm"])
    pooling = Pooling(options["roi_pool"], [encoder.output_stride], options["aligned"])
    return {
        "encoder": encoder,
        "neck": None,
        "rpn": _rpn(encoder.out_channels[-1], options, C4_ANCHORS),
        "heads": C4Heads(stage, channels, options["num_classes"], pooling=pooling),
    }


def _rpn(channels: int, options: Mapping[str, Any], sizes: Sequence[Sequence[float]]) -> RPN:
    anchors = Anchors(options["anchor_sizes"] or sizes)
    levels = len(sizes)
    if len(anchors.sizes) != levels:
        raise OptionError(
            f"anchor_sizes has {len(anchors.sizes)} levels, neck {options['neck']!r} has {levels}: "
            f"give one tuple of sizes for each, such as {tuple(sizes)}"
        )
    return RPN(channels, anchors, pick(RPNOptions, options))
