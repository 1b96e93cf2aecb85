"""The figures of class maps over a split, for the training loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from segcore.metrics import ConfusionMatrix

SemanticLoss = Callable[[Tensor, Tensor], Tensor]


class SemanticMetric:
    """miou, pixel_accuracy, mean_accuracy, fw_iou, the mean loss per image, iou/<class name>.

    Args:
        confusion: counts pixels.
        loss: (logits, target) -> scalar.
        class_names: one per class of `confusion`.
    """

    def __init__(
        self, confusion: ConfusionMatrix, *, loss: SemanticLoss, class_names: Sequence[str]
    ) -> None:
        self.confusion = confusion
        self.loss = loss
        self.class_names = tuple(class_names)
        self.loss_sum: Tensor | float = 0.0
        self.images = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch of logits [N, K, H, W] and its target [N, H, W]."""
        self.confusion.update(prediction, target)
        self.loss_sum = self.loss_sum + self.loss(prediction, target).detach() * len(target)
        self.images += len(target)

    def compute(self) -> dict[str, float]:
        """Figures by key; NaN where one is not defined."""
        iou = self.confusion.per_class()["iou"]
        mean_loss = float(self.loss_sum) / self.images if self.images else float("nan")
        return {
            **self.confusion.compute(),
            "loss": mean_loss,
            **{f"iou/{name}": value for name, value in zip(self.class_names, iou, strict=True)},
        }

    def state(self) -> dict[str, Any]:
        """What `merge` of another worker needs, on the CPU."""
        return {
            "confusion": self.confusion.state(),
            "loss_sum": float(self.loss_sum),
            "images": self.images,
        }

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Replace this state by that of all workers together."""
        self.confusion.merge([state["confusion"] for state in states])
        self.loss_sum = sum(state["loss_sum"] for state in states)
        self.images = sum(state["images"] for state in states)
