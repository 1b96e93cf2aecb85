"""Batch norm of a backbone, exchanged: frozen statistics, or groups."""

from typing import Any

import torch
from torch import Tensor, nn

from segcore.models.blocks import check_choice, make_norm

BACKBONE_NORMS = ("batch", "frozen", "group")


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine values are constants of a checkpoint.

    Shape:
        x, returns: [N, channels, H, W]
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Trainable batch norm counts its batches; here the count has no use.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def set_norm(network: nn.Module, norm: str) -> None:
    """Replace the batch norms of a network in place, keeping their values where they have a use.

    Args:
        network: with nn.BatchNorm2d.
        norm: "batch" changes nothing; "frozen" makes constants of them; "group" takes groups.

    Raises:
        OptionError: unknown name.
    """
    check_choice("norm", norm, BACKBONE_NORMS)
    if norm == "batch":
        return
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.BatchNorm2d):
            continue
        new: nn.Module
        if norm == "group":
            new = make_norm("group", layer.num_features)
        else:
            new = FrozenBatchNorm2d(layer.num_features, eps=layer.eps)
            new.load_state_dict(layer.state_dict())
        network.set_submodule(name, new.to(layer.weight.device))
