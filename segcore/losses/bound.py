"""Losses with their options bound: what `create_loss` returns."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segcore.errors import OptionError, ShapeError


class Loss:
    """A loss function with its options: loss(logits, target) -> scalar.

    It computes in float32 under autocast too, and keeps its class weights on the device where it
    was last called, so that a training step copies nothing from the host.

    Args:
        function: (logits, target, *, ignore_index, class_weights, **options) -> scalar.
        num_classes: channels of the logits; 1 means a foreground logit and targets in {0, 1}.
        class_weights: [num_classes] floats, or two (background, foreground) for one class.
        options: keyword arguments of the function.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Tensor],
        *,
        num_classes: int,
        ignore_index: int,
        class_weights: Tensor | Sequence[float] | None,
        options: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_weights = as_weights(class_weights, num_classes)
        self.options = dict(options)
        self._function = function

    @property
    def takes_map(self) -> bool:
        """Whether the loss takes a third argument computed from the target beforehand."""
        parameters = list(inspect.signature(self._function).parameters.values())
        return parameters[2].kind is not inspect.Parameter.KEYWORD_ONLY

    def __call__(self, logits: Tensor, target: Tensor, target_map: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            target_map: where the function takes one: border weights, signed distances.

        Shape:
            logits: [N, num_classes, H, W] float
            target: [N, H, W] integer

        Raises:
            ShapeError: the logits have another number of channels, or the shapes disagree.
            DataError: the target holds an id that is neither a class nor ignore_index (on CPU).
        """
        if logits.dim() < 2 or logits.shape[1] != self.num_classes:
            raise ShapeError(
                f"loss {self.name} is for {self.num_classes} classes, but the logits are "
                f"{tuple(logits.shape)}: give [N, {self.num_classes}, H, W]"
            )
        maps = () if target_map is None else (target_map,)
        if maps and not self.takes_map:
            raise OptionError(f"loss {self.name} takes logits and target only: leave out the map")
        if self.class_weights is not None and self.class_weights.device != logits.device:
            self.class_weights = self.class_weights.to(logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            return self._function(
                logits,
                target,
                *maps,
                ignore_index=self.ignore_index,
                class_weights=self.class_weights,
                **self.options,
            )

    def __repr__(self) -> str:
        shown: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": self.ignore_index}
        weights = self.class_weights
        if weights is not None:
            shown["class_weights"] = [round(float(weight), 4) for weight in weights]
        listed = ", ".join(f"{key}={value!r}" for key, value in {**shown, **self.options}.items())
        return f"{self.name}({listed})"


class WeightedSum:
    """A weighted sum of losses: loss(logits, target) -> scalar.

    Args:
        terms: (weight, loss) pairs.
    """

    def __init__(self, terms: Sequence[tuple[float, Loss]]) -> None:
        self.terms = tuple(terms)

    def parts(
        self, logits: Tensor, target: Tensor, target_map: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Each term times its weight, by the loss's name; terms of one name are added."""
        parts: dict[str, Tensor] = {}
        for weight, loss in self.terms:
            part = weight * loss(logits, target, target_map if loss.takes_map else None)
            parts[loss.name] = parts[loss.name] + part if loss.name in parts else part
        return parts

    def __call__(self, logits: Tensor, target: Tensor, target_map: Tensor | None = None) -> Tensor:
        """The sum of `parts`; a map goes to the terms that take one.

        Shape:
            logits: [N, num_classes, H, W] float
            target: [N, H, W] integer
        """
        return torch.stack(list(self.parts(logits, target, target_map).values())).sum()

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} * {loss!r}" for weight, loss in self.terms)


def as_weights(class_weights: Tensor | Sequence[float] | None, num_classes: int) -> Tensor | None:
    """Class weights as a float32 tensor of their own.

    Raises:
        OptionError: a wrong number of weights, or one that is negative or not finite.
    """
    if class_weights is None:
        return None
    weights = torch.as_tensor(class_weights, dtype=torch.float32).detach().clone()
    expected = 2 if num_classes == 1 else num_classes
    if weights.shape != (expected,):
        raise OptionError(
            f"class_weights has shape {tuple(weights.shape)}: give {expected} numbers"
            + (" (background, foreground)" if num_classes == 1 else ", one a class")
        )
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise OptionError(f"class_weights are {weights.tolist()}: give finite numbers >= 0")
    return weights
