"""Turn the last strides of a network into dilation.

Each stride that is removed doubles the dilation of every later layer, so the dense map, read at
every n-th position, equals the strided one (the a-trous algorithm).

Reference: Chen et al. 2015, arXiv:1412.7062; Yu & Koltun 2016, arXiv:1511.07122.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DilatedPool(nn.Module):
    """Max or average pooling at stride 1 with dilated taps, which keeps the size.

    Shape:
        x, returns: [N, C, H, W]
    """

    def __init__(self, kind: str, kernel_size: int, *, padding: int, dilation: int) -> None:
        super().__init__()
        self.kind = kind
        self.kernel_size = kernel_size
        self.dilation = dilation
        before = padding * dilation
        after = (kernel_size - 1) * dilation - before
        self.margins = [before, after, before, after]

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "max":
            x = F.pad(x, self.margins, value=float("-inf"))
            return F.max_pool2d(x, self.kernel_size, stride=1, dilation=self.dilation)
        height, width = x.shape[2:]
        x = F.pad(x, self.margins)
        taps = [
            x[:, :, top : top + height, left : left + width]
            for top in self._offsets()
            for left in self._offsets()
        ]
        return torch.stack(taps).mean(0)

    def _offsets(self) -> range:
        return range(0, self.kernel_size * self.dilation, self.dilation)


class DilatedConv2d(nn.Conv2d):
    """A strided convolution at stride 1, zero-padded so that it keeps the size.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, H, W]
    """

    def __init__(self, conv: nn.Conv2d, dilation: int) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            dilation=dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            device=conv.weight.device,
        )
        self.weight, self.bias = conv.weight, conv.bias
        kernel, before = conv.kernel_size[0], int(conv.padding[0]) * dilation
        self.margins = [before, (kernel - 1) * dilation - before] * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.margins))


def dilate(trunk: nn.Sequential, strides: Sequence[int], output_stride: int) -> None:
    """Replace the strides of a trunk beyond `output_stride` by dilation, in place.

    Args:
        trunk: layers in order.
        strides: stride after each of them.
        output_stride: stride of the last feature map afterwards.
    """
    for index, layer in enumerate(trunk):
        if strides[index] > output_stride:
            before = max(strides[index - 1] // output_stride, 1)
            trunk[index] = _dilate_layer(layer, before, strides[index] // output_stride)


def _dilate_layer(layer: nn.Module, before: int, after: int) -> nn.Module:
    """A layer whose input has dilation `before` and whose output has `after`.

    Within a layer, in order of registration: its strided modules still see `before`, so do those
    that come earlier; those that come later see `after`. Parallel branches keep one 1x1 stride.
    """
    if not list(layer.children()):
        return _dilate_leaf(layer, before)
    dilation = before
    for name, module in list(layer.named_modules()):
        if list(module.children()) or not name:
            continue
        strided = _stride(module) > 1
        layer.set_submodule(name, _dilate_leaf(module, before if strided else dilation))
        dilation = after if strided else dilation
    return layer


def _stride(module: nn.Module) -> int:
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        return 1
    stride = module.stride
    return stride if isinstance(stride, int) else int(stride[0])


def _dilate_leaf(module: nn.Module, dilation: int) -> nn.Module:
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        kind = "max" if isinstance(module, nn.MaxPool2d) else "average"
        kernel, padding = _single(module.kernel_size), _single(module.padding)
        return DilatedPool(kind, kernel, padding=padding, dilation=dilation)
    if isinstance(module, nn.Conv2d) and (_stride(module) > 1 or module.kernel_size != (1, 1)):
        return DilatedConv2d(module, dilation)
    return module


def _single(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
