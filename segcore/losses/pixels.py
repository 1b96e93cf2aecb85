"""What every loss shares: which pixels count, in which precision, and means that survive none."""

from typing import NamedTuple

import torch
from torch import Tensor

from segcore.errors import DataError, ShapeError


class Pixels(NamedTuple):
    """A batch as the losses see it.

    A single logit z becomes the two logits (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)):
    binary losses are then the two-class ones.

    Shape:
        logits: [N, K, *] float32 or float64; 0 at ignored pixels, whatever stood there
        target: [N, *] int64; 0 at ignored pixels
        valid: [N, *] bool; False at ignored pixels
        binary: whether the logits came as one channel
    """

    logits: Tensor
    target: Tensor
    valid: Tensor
    binary: bool

    @property
    def first_class(self) -> int:
        """First class that a region loss averages: a binary one scores the foreground alone."""
        return 1 if self.binary else 0


def labelled(logits: Tensor, target: Tensor, ignore_index: int) -> Pixels:
    """Check a batch, lift it to float32 and blank its ignored pixels.

    Args:
        logits: [N, K, *] of any float type; K = 1 means a foreground logit, target in {0, 1}.
        target: [N, *] of any integer type, class ids or ignore_index.
        ignore_index: id that counts nowhere; may lie inside or outside of 0..K-1.

    Raises:
        ShapeError: the shapes do not belong together.
        DataError: target holds an id that is neither a class nor ignore_index. Checked on the CPU
            only; on an accelerator the kernels' own device assertion stops the run.
    """
    check_shapes(logits, target)
    if logits.dtype != torch.float64:
        logits = logits.float()
    valid = target != ignore_index
    target = target.long().masked_fill(~valid, 0)
    binary = logits.shape[1] == 1
    check_range(target, 2 if binary else logits.shape[1], ignore_index)
    logits = logits.masked_fill(~valid.unsqueeze(1), 0.0)
    if binary:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return Pixels(logits, target, valid, binary)


def check_shapes(logits: Tensor, target: Tensor) -> None:
    """Refuse logits and a target that do not belong together.

    Raises:
        ShapeError: says both shapes.
    """
    if logits.dim() < 2 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ShapeError(
            f"logits are {tuple(logits.shape)} and target is {tuple(target.shape)}: "
            "give logits [N, K, H, W] and target [N, H, W]"
        )


def check_range(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse ids that are no class, where looking costs nothing: on the CPU.

    Raises:
        DataError: names the id.
    """
    if target.device.type != "cpu" or target.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (int(bound) for bound in torch.aminmax(target))
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"target holds the id {wrong}, but there are {num_classes} classes "
            f"(0..{num_classes - 1}) and ignore_index is {ignore_index}: "
            "correct the masks, num_classes or ignore_index"
        )


def one_hot(pixels: Pixels) -> Tensor:
    """Indicator of each pixel's class; all False at ignored pixels.

    Shape:
        returns: [N, K, *] bool
    """
    empty = torch.zeros(pixels.logits.shape, dtype=torch.bool, device=pixels.logits.device)
    return empty.scatter_(1, pixels.target.unsqueeze(1), True) & pixels.valid.unsqueeze(1)


def ratio(total: Tensor, weight: Tensor) -> Tensor:
    """total / weight, or total (a 0 that has a gradient) where the weight is 0."""
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def class_mean(losses: Tensor, present: Tensor, class_weights: Tensor | None) -> Tensor:
    """Mean of per-class losses over the classes that are present, weighted by class_weights.

    Shape:
        losses: [B, K] float
        present: [B, K] bool
        class_weights: [K]
        returns: scalar; 0 where no class is present
    """
    weight = present.to(losses.dtype)
    if class_weights is not None:
        weight = weight * class_weights.to(losses.dtype)
    return ratio((losses * weight).sum(), weight.sum())
