"""How well class boundaries are placed: boundary F1 and boundary IoU, streamed.

References: boundary F1, Csurka et al. 2013, doi:10.5244/C.27.32, at SegNet's tolerance
(arXiv:1511.00561, section 4); boundary IoU, Cheng et al. 2021, arXiv:2103.16562.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.errors import OptionError, ShapeError


class BoundaryScore:
    """Boundary F1 and boundary IoU of class maps over everything that was added.

    A boundary pixel of a class has a 4-neighbour of another class. Its precision is the share of
    predicted boundary pixels with a true one within `tolerance` of the image's diagonal, its recall
    the converse; F1 of an image is the mean over the classes in its target, the figure the mean
    over images. Two boundaries are matched by distance, not one pixel to one (as the BSDS program
    does), which can only raise the figure. Boundary IoU is IoU within the band of `band` diagonals
    along each region's edge, summed over the data set.

    Ignored pixels and the image's edge are no boundary, and predictions there do not count.

    Args:
        num_classes: K.
        ignore_index: target id that does not count.
        tolerance: in image diagonals; SegNet's is 0.0075 (4.5 pixels at 360 x 480).
        band: in image diagonals; the paper's is 0.02 for natural images.
        device: where the sums live; that of the first update by default.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        *,
        tolerance: float = 0.0075,
        band: float = 0.02,
        device: torch.device | str | None = None,
    ) -> None:
        if num_classes < 1 or tolerance < 0 or band <= 0:
            raise OptionError(
                f"num_classes is {num_classes}, tolerance {tolerance}, band {band}: "
                "give num_classes >= 1, tolerance >= 0 and band > 0"
            )
        self.num_classes = max(num_classes, 2)
        self.ignore_index = ignore_index
        self.tolerance = tolerance
        self.band = band
        # Rows: F1 summed, its images, band intersection, band union; the last column is for images.
        shape = (4, self.num_classes + 1)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self._placed = device is not None

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Shape:
            prediction: [N, H, W] integer class ids, or [N, K, H, W] logits
            target: [N, H, W] integer class ids or ignore_index

        Raises:
            ShapeError: the shapes do not belong together.
        """
        if prediction.dim() == target.dim() + 1:
            single = prediction.shape[1] == 1
            prediction = prediction[:, 0] > 0 if single else prediction.argmax(1)
        if prediction.shape != target.shape or target.dim() != 3:
            raise ShapeError(
                f"prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}: "
                "give class ids [N, H, W] of one shape, or logits [N, K, H, W]"
            )
        if not self._placed:
            self._sums, self._placed = self._sums.to(target.device), True
        for predicted, true in zip(prediction, target, strict=True):
            self._sums += self._score_image(predicted, true)

    def _score_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The sums of one image; one at a time, to hold [K, H, W] maps of one image only."""
        classes = torch.arange(self.num_classes, device=target.device).view(-1, 1, 1)
        void = target == self.ignore_index
        true = (target == classes) & ~void
        guess = (prediction == classes) & ~void
        diagonal = math.hypot(*target.shape)
        f1, counted = _boundary_f1(guess, true, void, radius=self.tolerance * diagonal)
        width = max(1, round(self.band * diagonal))
        true_band = true & ~_erode(true | void, width)
        guess_band = guess & ~_erode(guess | void, width)
        sums = torch.zeros_like(self._sums)
        sums[0, :-1], sums[1, :-1] = f1 * counted, counted
        sums[2, :-1] = (true_band & guess_band).sum((1, 2))
        sums[3, :-1] = (true_band | guess_band).sum((1, 2))
        number = counted.sum()
        sums[0, -1] = (f1 * counted).sum() / number.clamp_min(1)
        sums[1, -1] = number > 0
        return sums

    def compute(self) -> dict[str, float]:
        """boundary_f1 and boundary_iou (mean over the classes met); NaN where none was."""
        sums = self._sums.cpu()
        ious = _quotients(sums[2, :-1], sums[3, :-1])
        return {
            "boundary_f1": float(_quotients(sums[0, -1:], sums[1, -1:])[0]),
            "boundary_iou": float(ious.nanmean()),
        }

    def per_class(self) -> dict[str, list[float]]:
        """boundary_f1 (mean over the images with the class) and boundary_iou of each class."""
        sums = self._sums.cpu()
        return {
            "boundary_f1": _quotients(sums[0, :-1], sums[1, :-1]).tolist(),
            "boundary_iou": _quotients(sums[2, :-1], sums[3, :-1]).tolist(),
        }

    def state(self) -> Tensor:
        """What `merge` of another worker needs: the sums, on the CPU."""
        return self._sums.cpu().clone()

    def merge(self, states: Sequence[Tensor]) -> None:
        """Replace the sums by those of all workers together."""
        self._sums = torch.stack([state.cpu() for state in states]).sum(0).to(self._sums.device)


def _quotients(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp_min(1), math.nan)


def _boundary_f1(
    guess: Tensor, true: Tensor, void: Tensor, *, radius: float
) -> tuple[Tensor, Tensor]:
    """F1 [K] of the classes' boundaries, and which classes count [K].

    A class counts if it is in the target and has a boundary in the target or the prediction.
    """
    true_edge = true & ~_erode(true | void, 1, diagonal=False)
    guess_edge = guess & ~_erode(guess | void, 1, diagonal=False)
    found = (true_edge & _dilate_disk(guess_edge, radius)).sum((1, 2)).double()
    right = (guess_edge & _dilate_disk(true_edge, radius)).sum((1, 2)).double()
    true_number, guess_number = true_edge.sum((1, 2)), guess_edge.sum((1, 2))
    recall = found / true_number.clamp_min(1)
    precision = right / guess_number.clamp_min(1)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return f1, true.any(2).any(1) & ((true_number + guess_number) > 0)


def _erode(region: Tensor, width: int, *, diagonal: bool = True) -> Tensor:
    """Pixels of regions [K, H, W] whose neighbours within `width` all belong; none outside counts.

    The neighbourhood is a square, or with diagonal=False a cross.
    """
    outside = (~region).float().unsqueeze(0)
    size, pad = 2 * width + 1, width
    across = F.max_pool2d(outside, (1, size), stride=1, padding=(0, pad))
    down = F.max_pool2d(across if diagonal else outside, (size, 1), stride=1, padding=(pad, 0))
    return torch.maximum(across, down)[0] == 0


def _dilate_disk(points: Tensor, radius: float) -> Tensor:
    """Pixels of maps [K, H, W] with a point at a distance of at most radius; exact.

    A disk is a stack of horizontal runs: the points in each run come from running sums.
    """
    height, width = points.shape[1:]
    reach = min(math.floor(radius), height - 1)
    near = torch.zeros_like(points)
    for offset in range(-reach, reach + 1):
        half = math.floor(math.sqrt(radius**2 - offset**2))
        padded = F.pad(points.to(torch.int32), (half + 1, half))
        sums = padded.cumsum(2, dtype=torch.int32)
        run = (sums[..., 2 * half + 1 :] - sums[..., :width]) > 0
        rows = slice(max(offset, 0), height + min(offset, 0))
        source = slice(max(-offset, 0), height + min(-offset, 0))
        near[:, rows] |= run[:, source]
    return near
