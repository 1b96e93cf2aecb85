"""Whether confidence means accuracy: the expected calibration error, streamed.

Reference: Guo et al. 2017, arXiv:1706.04599.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segcore.errors import OptionError, ShapeError


class CalibrationError:
    """Expected calibration error over all labelled pixels that were added.

    Pixels fall into equal bins of confidence, the highest class probability; the error is the mean
    over bins of |accuracy - mean confidence|, weighed by their pixels.

    Args:
        ignore_index: target id that does not count.
        bins: number of bins of 0..1.
        device: where the sums live; that of the first update by default.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        bins: int = 15,
        device: torch.device | str | None = None,
    ) -> None:
        if bins < 1:
            raise OptionError(f"bins is {bins}: give at least 1")
        self.ignore_index = ignore_index
        self.bins = bins
        # Rows: pixels, right pixels, confidence summed; the last bin takes the ignored pixels.
        self._sums = torch.zeros(3, bins + 1, dtype=torch.float64, device=device)
        self._placed = device is not None

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Shape:
            logits: [N, K, H, W] float, or [N, 1, H, W] for a foreground logit
            target: [N, H, W] integer class ids or ignore_index

        Raises:
            ShapeError: the shapes do not belong together.
        """
        if logits.dim() < 2 or target.shape != (logits.shape[0], *logits.shape[2:]):
            raise ShapeError(
                f"logits are {tuple(logits.shape)} and target is {tuple(target.shape)}: "
                "give logits [N, K, H, W] and target [N, H, W]"
            )
        if not self._placed:
            self._sums, self._placed = self._sums.to(target.device), True
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        confidence, prediction = torch.softmax(logits.detach().float(), dim=1).max(1)
        void = target == self.ignore_index
        place = (confidence * self.bins).long().clamp_(0, self.bins - 1)
        place = place.masked_fill(void, self.bins).flatten()
        for row, values in enumerate(
            (torch.ones_like(confidence), prediction == target, confidence)
        ):
            self._sums[row].scatter_add_(0, place, values.double().flatten())

    def compute(self) -> dict[str, float]:
        """calibration_error in 0..1; NaN before the first labelled pixel."""
        number, right, confidence = self._sums[:, :-1].cpu()
        gaps = (right - confidence).abs().sum()
        return {"calibration_error": float(gaps / number.sum()) if number.any() else math.nan}

    def reliability(self) -> dict[str, list[float]]:
        """The reliability diagram: accuracy, confidence and share of pixels of each bin."""
        number, right, confidence = self._sums[:, :-1].cpu()
        some = number.clamp_min(1)
        return {
            "accuracy": torch.where(number > 0, right / some, math.nan).tolist(),
            "confidence": torch.where(number > 0, confidence / some, math.nan).tolist(),
            "share": (number / number.sum().clamp_min(1)).tolist(),
        }

    def state(self) -> Tensor:
        """What `merge` of another worker needs: the sums, on the CPU."""
        return self._sums.cpu().clone()

    def merge(self, states: Sequence[Tensor]) -> None:
        """Replace the sums by those of all workers together."""
        self._sums = torch.stack([state.cpu() for state in states]).sum(0).to(self._sums.device)
