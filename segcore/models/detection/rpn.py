"""The region proposal network: objectness and box of every anchor.

Reference: Ren et al. 2015, arXiv:1506.01497; per level of a pyramid, Lin et al. 2017,
arXiv:1612.03144.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.models.detection.anchors import Anchors
from segcore.models.detection.boxes import (
    box_iou,
    clip_boxes,
    clip_gradient,
    decode,
    encode,
    has_sides,
    pad_boxes,
)
from segcore.models.detection.matching import match, sample

MIN_SIDE_PX = 1e-3
SMOOTH_L1_BETA = 1 / 9


@dataclass(frozen=True)
class RPNOptions:
    """How anchors are trained and proposals kept; torchvision's names and defaults.

    Args:
        rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test: best anchors of a level before NMS.
        rpn_post_nms_top_n_train, rpn_post_nms_top_n_test: proposals of an image after it.
        rpn_nms_thresh: overlap from which NMS, done per level, drops the weaker box.
        rpn_fg_iou_thresh: an anchor is an object's from this overlap on, or as its best anchor.
        rpn_bg_iou_thresh: an anchor is background below this overlap.
        rpn_batch_size_per_image: anchors an image in the loss.
        rpn_positive_fraction: largest share of objects' anchors among them.
        rpn_score_thresh: least objectness (probability) of a proposal.
    """

    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_score_thresh: float = 0.0


@dataclass(frozen=True, eq=False)
class Proposals:
    """What the RPN found and what it cost.

    Args:
        boxes: float32 [n, 4] an image, descending by score; without gradient but for
            `box_gradient`.
        scores: float32 [n] an image, probabilities.
        losses: "loss_objectness" and "loss_rpn_box_reg"; empty without targets.
    """

    boxes: list[Tensor]
    scores: list[Tensor]
    losses: dict[str, Tensor]


class RPNHead(nn.Module):
    """3x3 convolution, then objectness and box code of every anchor by 1x1.

    Shape:
        x: [N, in_channels, H, W] of each level
        returns: logits [N, sum(H * W * per_cell)] and codes [N, sum(H * W * per_cell), 4]
    """

    def __init__(self, in_channels: int, per_cell: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or in_channels
        self.conv = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.cls_logits = nn.Conv2d(hidden, per_cell, 1)
        self.bbox_pred = nn.Conv2d(hidden, 4 * per_cell, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        logits, codes = [], []
        for x in features:
            x = F.relu(self.conv(x), inplace=True)
            logits.append(self.cls_logits(x).permute(0, 2, 3, 1).flatten(1))
            codes.append(self.bbox_pred(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return torch.cat(logits, dim=1).float(), torch.cat(codes, dim=1).float()


class RPN(nn.Module):
    """Proposals of every image, and in training the losses of the anchors.

    Args:
        in_channels: of every level.
        anchors: sizes of each level.
        options: as `RPNOptions`.
        hidden: channels of the 3x3 convolution; in_channels by default.
        box_gradient: proposals pass a gradient to their codes, clipped to this over the number of
            images, for what reads them by a pooling that is differentiable in the box (MNC); 0:
            none.
    """

    def __init__(
        self,
        in_channels: int,
        anchors: Anchors,
        options: RPNOptions | None = None,
        *,
        hidden: int | None = None,
        box_gradient: float = 0.0,
    ) -> None:
        super().__init__()
        self.box_gradient = box_gradient
        self.anchors = anchors
        self.options = options or RPNOptions()
        self.head = RPNHead(in_channels, anchors.per_cell, hidden)

    def forward(
        self,
        features: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        padded: tuple[int, int],
        objects: Sequence[Tensor] | None = None,
    ) -> Proposals:
        """Propose, and compare with the objects where they are given.

        Args:
            features: [N, in_channels, H, W] of each level.
            sizes: (height, width) of each image, to which its proposals are clipped.
            padded: (height, width) of the batch.
            objects: boxes [n, 4] of each image, in training.
        """
        logits, codes = self.head(features)
        levels = self.anchors(features, padded)
        limit = self.box_gradient / len(codes)
        reaching = clip_gradient(codes, limit) if limit else codes.detach()
        boxes, scores = self._propose(logits.detach(), reaching, levels, sizes)
        losses = {} if objects is None else self._losses(logits, codes, torch.cat(levels), objects)
        return Proposals(boxes, scores, losses)

    def _losses(
        self, logits: Tensor, codes: Tensor, anchors: Tensor, objects: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        o = self.options
        boxes, present = pad_boxes(objects)
        high, low = o.rpn_fg_iou_thresh, o.rpn_bg_iou_thresh
        index, kind = match(box_iou(boxes, anchors), present, high=high, low=low, rescue=True)
        positive, negative = sample(kind, o.rpn_batch_size_per_image, o.rpn_positive_fraction)
        drawn = positive | negative
        objectness = F.binary_cross_entropy_with_logits(logits[drawn], positive[drawn].float())
        image, place = positive.nonzero(as_tuple=True)
        target = encode(boxes[image, index[image, place]], anchors[place])
        distance = F.smooth_l1_loss(
            codes[image, place], target, beta=SMOOTH_L1_BETA, reduction="sum"
        )
        return {"loss_objectness": objectness, "loss_rpn_box_reg": distance / drawn.sum()}

    def _propose(
        self,
        logits: Tensor,
        codes: Tensor,
        anchors: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Best anchors of each level, decoded, clipped; NMS within each level; the best of all."""
        o = self.options
        before = o.rpn_pre_nms_top_n_train if self.training else o.rpn_pre_nms_top_n_test
        scores, boxes, levels = [], [], []
        start = 0
        for level, own in enumerate(anchors):
            part = slice(start, start + len(own))
            score, index = logits[:, part].topk(min(before, len(own)), dim=1)
            code = codes[:, part].gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode(code, own[index]))
            scores.append(score.sigmoid())
            levels.append(torch.full_like(index, level))
            start += len(own)
        found = zip(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1), strict=True)
        kept = [self._keep(*image, size) for image, size in zip(found, sizes, strict=True)]
        return [b for b, _ in kept], [s for _, s in kept]

    def _keep(
        self, boxes: Tensor, scores: Tensor, levels: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        from torchvision.ops import batched_nms

        o = self.options
        boxes = clip_boxes(boxes, size)
        good = has_sides(boxes, MIN_SIDE_PX) & (scores >= o.rpn_score_thresh)
        boxes, scores, levels = boxes[good], scores[good], levels[good]
        after = o.rpn_post_nms_top_n_train if self.training else o.rpn_post_nms_top_n_test
        kept = batched_nms(boxes.detach(), scores, levels, o.rpn_nms_thresh)[:after]
        return boxes[kept], scores[kept]
