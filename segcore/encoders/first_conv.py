"""A first convolution for other numbers of input channels."""

import math

import torch
from torch import Tensor, nn


def adapt_weight(weight: Tensor, in_channels: int) -> Tensor:
    """RGB kernels for other input channels: summed for 1, else repeated and rescaled by 3 / n.

    Args:
        weight: [out_channels, 3, h, w]

    Returns:
        [out_channels, in_channels, h, w], whose response to equal channels stays the same.
    """
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = math.ceil(in_channels / weight.shape[1])
    return weight.repeat(1, repeats, 1, 1)[:, :in_channels] * (weight.shape[1] / in_channels)


def adapt_first_conv(network: nn.Module, in_channels: int, *, keep_weights: bool) -> None:
    """Replace the first convolution of a network by one of `in_channels`.

    Args:
        network: its first Conv2d sees the images.
        in_channels: channels of the images.
        keep_weights: derive the kernels from the present ones; else He-normal over fan_out.
    """
    name, conv = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if conv.in_channels == in_channels:
        return
    adapted = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    ).to(conv.weight.device)
    with torch.no_grad():
        if keep_weights:
            adapted.weight.copy_(adapt_weight(conv.weight, in_channels))
        else:
            nn.init.kaiming_normal_(adapted.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None and adapted.bias is not None:
            adapted.bias.copy_(conv.bias)
    network.set_submodule(name, adapted)
