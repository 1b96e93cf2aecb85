"""Gaussian filtering of scattered points in a few dimensions, in time linear in their number.

Reference: Adams, Baek & Davis 2010, "Fast high-dimensional filtering using the permutohedral
lattice", doi:10.1111/j.1467-8659.2009.01645.x.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.errors import OptionError


class PermutohedralLattice:
    """Approximates sum_j exp(-|f_i - f_j|^2 / 2) v_j for every point i.

    Each point spreads its value over the d + 1 corners of its simplex of a lattice, the occupied
    corners are blurred by (1, 2, 1) / 4 along each lattice axis, and the points read back from
    their corners. The kernel is a Gaussian only about: it varies with the place of a point in its
    simplex, and corners that no point occupies pass nothing on.

    Shape:
        features: [P, d] float, in standard deviations of the kernel
    """

    def __init__(self, features: Tensor) -> None:
        points, dims = features.shape
        self.axes = dims + 1
        keys, self._weights = _simplices(features.float())
        packed, steps = _pack(keys)
        occupied, corner = torch.unique(packed, return_inverse=True)
        self._corner = corner.view(points, self.axes)
        self._neighbours = [
            (_find(occupied, occupied + step), _find(occupied, occupied - step)) for step in steps
        ]
        order = corner.argsort()
        self._sources = order // self.axes
        self._source_weights = self._weights.flatten()[order]
        self._starts = torch.searchsorted(corner[order], torch.arange(len(occupied)).to(corner))
        # Volume of the Gaussian over that of the lattice's cell, in features.
        self._scale: float = (4 * math.pi / 3) ** (dims / 2) * math.sqrt(self.axes)

    @property
    def size(self) -> int:
        """Occupied corners of the lattice."""
        return len(self._starts)

    def filter(self, values: Tensor) -> Tensor:
        """The sums, each point's own value included.

        Shape:
            values, returns: [P, K] float32
        """
        weights = self._source_weights
        table = F.embedding_bag(
            self._sources, values, self._starts, mode="sum", per_sample_weights=weights
        )
        nothing = table.new_zeros(1, values.shape[1])
        for after, before in self._neighbours:
            padded = torch.cat([table, nothing])
            table = table * 0.5 + (padded[after] + padded[before]) * 0.25
        read = F.embedding_bag(self._corner, table, mode="sum", per_sample_weights=self._weights)
        return self._scale * read

    def own_share(self) -> Tensor:
        """The part of `filter` by which each point's own value comes back, all corners occupied.

        Shape:
            returns: [P, 1] float32
        """
        axes, weights = self.axes, self._weights
        # Corners m apart are joined by one step along m axes, or back along all others.
        share = weights.new_zeros(len(weights))
        for apart in range(axes):
            joined: float = (
                0.25**apart * 0.5 ** (axes - apart) + 0.25 ** (axes - apart) * 0.5**apart
            )
            if apart == 0:
                joined += 0.25**axes
            share += joined * (weights * weights.roll(apart, 1)).sum(1)
        return (share * self._scale).unsqueeze(1)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """Corners of each point's simplex and the point's barycentric weights there (Adams, 3.1).

    Shape:
        features: [P, d]
        returns: corners int64 [P, d + 1, d + 1] (corner, coordinate), weights [P, d + 1]
    """
    dims = features.shape[1]
    axes = dims + 1
    number = torch.arange(1, axes, device=features.device, dtype=features.dtype)
    scaled = features * (axes * math.sqrt(2 / 3) / (number * (number + 1)).sqrt())
    # Rotation into the plane of coordinate sum 0: coordinate i is sum_{j > i} s_j - i s_i.
    tail = scaled.flip(1).cumsum(1).flip(1)
    ends = scaled.new_zeros(len(scaled), 1)
    elevated = torch.cat([tail, ends], 1) - torch.cat([ends, number * scaled], 1)

    base = (elevated / axes).round() * axes
    excess = (base.sum(1, keepdim=True) / axes).round().long()
    offset = elevated - base
    rank = offset.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + excess
    low, high = rank < 0, rank > dims
    rank = rank + axes * low.long() - axes * high.long()
    base = base + axes * low.to(base.dtype) - axes * high.to(base.dtype)

    offset = (elevated - base) / axes
    ranked = torch.empty_like(offset).scatter_(1, rank, offset)
    weights = torch.cat([ranked, ranked.new_zeros(len(ranked), 1)], 1)
    weights = weights[:, :-1] - torch.cat([weights[:, 1:-1], weights[:, -1:]], 1)
    weights = weights.flip(1)
    weights = torch.cat([1 - weights[:, 1:].sum(1, keepdim=True), weights[:, 1:]], 1)

    corner = torch.arange(axes, device=features.device).view(1, axes, 1)
    shift = torch.where(rank.unsqueeze(1) > dims - corner, corner - axes, corner)
    return base.long().unsqueeze(1) + shift, weights


def _pack(keys: Tensor) -> tuple[Tensor, list[int]]:
    """One integer for each corner, and what a step along each lattice axis adds to it.

    The last coordinate follows from the others (they sum to 0) and is left out.
    """
    axes = keys.shape[-1]
    flat = keys.reshape(-1, axes)[:, :-1]
    low, high = torch.aminmax(flat, dim=0)
    spans = [int(span) + 4 * axes for span in (high - low)]
    if math.prod(spans) >= 2**62:
        raise OptionError(
            f"the kernel is too narrow for the lattice ({spans} cells): "
            "raise the standard deviations"
        )
    packed = torch.zeros(len(flat), dtype=torch.int64, device=keys.device)
    steps = [0] * axes
    for axis, span in enumerate(spans):
        packed = packed * span + (flat[:, axis] - low[axis] + 2 * axes)
        steps = [
            step * span + (axes - 1 if other == axis else -1) for other, step in enumerate(steps)
        ]
    return packed, steps


def _find(occupied: Tensor, wanted: Tensor) -> Tensor:
    """Place of each wanted key among the sorted ones; their number where it is not among them."""
    place = torch.searchsorted(occupied, wanted).clamp_(max=len(occupied) - 1)
    return torch.where(occupied[place] == wanted, place, len(occupied))
