"""Average pooling to a number of bins, in operations that every runtime has for every size."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class BinAverages(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two products of matrices.

    ONNX has no such pooling for a size that is not known beforehand.

    Shape:
        x: [N, C, H, W]
        returns: [N, C, *bins]
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (bin_weights(x.shape[2 + i], self.bins[i], x) for i in range(2))
        return torch.matmul(torch.matmul(rows, x), columns.T)


def bin_weights(length: int, bins: int, like: Tensor) -> Tensor:
    """Weights [bins, length] of the positions of an axis in each bin: its rows sum to 1.

    A bin reaches from floor(i * length / bins) to ceil((i + 1) * length / bins), so that
    neighbours may share a position.
    """
    index = torch.arange(bins, device=like.device)[:, None]
    start = torch.div(index * length, bins, rounding_mode="floor")
    stop = torch.div((index + 1) * length + bins - 1, bins, rounding_mode="floor")
    place = torch.arange(length, device=like.device)[None]
    inside = (place >= start) & (place < stop)
    return inside.to(like.dtype) / (stop - start).to(like.dtype)


@contextmanager
def averages_by_products(model: nn.Module) -> Iterator[None]:
    """Replace the adaptive average poolings of a model meanwhile, but for those to one bin."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, nn.AdaptiveAvgPool2d):
                continue
            size = child.output_size
            rows, columns = size if isinstance(size, tuple) else (size, size)
            if rows is not None and columns is not None and (rows, columns) != (1, 1):
                replaced.append((module, name, child))
                setattr(module, name, BinAverages((rows, columns)))
    try:
        yield
    finally:
        for module, name, child in replaced:
            setattr(module, name, child)
