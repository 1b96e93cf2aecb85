"""An exponential moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """A second model whose weights follow the first: a <- d a + (1 - d) w after each step.

    Floating buffers (running statistics) are averaged too, the rest copied. The decay of step t is
    min(decay, (1 + t) / (10 + t)), so that a short run does not keep its random start.

    Args:
        model: what is averaged; copied at once.
        decay: d, in 0..1.

    Reference: Tarvainen & Valpola 2017, arXiv:1703.01780 (the average), and the ramp of
    TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards a model's weights.

        Args:
            model: of the same structure.
            step: steps taken before this one.
        """
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        source = dict(model.state_dict(keep_vars=True))
        for name, value in self.model.state_dict(keep_vars=True).items():
            if torch.is_floating_point(value):
                averaged.append(value)
                current.append(source[name].detach())
            else:
                value.copy_(source[name])
        torch._foreach_lerp_(averaged, current, weight)
