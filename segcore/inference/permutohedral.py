"""Gaussian filtering of scattered points in a few dimensions, in time linear in their number.

Reference: Adams, Baek & Davis 2010, "Fast high-dimensional filtering using the permutohedral
lattice", doi:10.1111/j.1467-8659.2009.01645.x.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.errors import OptionError

_CACHED_POINTS = 1 << 14  # that are brought to the lattice at a time on CPUs


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
        elevated = _elevate(features.float())
        low, radix = _radix(elevated)
        keys = torch.empty(elevated.shape, dtype=torch.int64, device=features.device)
        weights = torch.empty_like(elevated)
        step = _CACHED_POINTS if features.device.type == "cpu" else max(1, points)
        for start in range(0, points, step):
            part = slice(start, start + step)
            _simplices(elevated[:, part], low, radix, keys[:, part], weights[:, part])
        del elevated
        self._neighbours = _neighbours(self._index(keys, weights), radix)
        # Volume of the Gaussian over that of the lattice's cell, in features.
        self._scale: float = (4 * math.pi / 3) ** (dims / 2) * math.sqrt(self.axes)

    def _index(self, keys: Tensor, weights: Tensor) -> Tensor:
        """Number the corners; list the points of each corner and the corners of each point.

        Points share a corner only where it is the n-th of each, as its coordinates leave n as
        remainder: one small search for each n.

        Shape:
            keys, weights: [d + 1, P]
            returns: the key of each corner
        """
        axes, points = keys.shape
        self._corner = torch.empty(points, axes, dtype=torch.int32, device=keys.device)
        self._sources = torch.empty(axes * points, dtype=torch.int32, device=keys.device)
        self._source_weights = torch.empty_like(weights).flatten()
        occupied, starts, size = [], [], 0
        for number, row in enumerate(keys):
            found, inverse, counts = torch.unique(row, return_inverse=True, return_counts=True)
            inverse = inverse.int()
            order = inverse.argsort()
            part = slice(number * points, (number + 1) * points)
            self._sources[part] = order
            self._source_weights[part] = weights[number][order]
            torch.add(inverse, size, out=self._corner[:, number])
            occupied.append(found)
            starts.append(counts.cumsum(0).sub_(counts).add_(part.start).int())
            size += len(found)
        # The last bag is empty: its zeros stand for every corner that is not occupied.
        self._starts = torch.cat([*starts, starts[0].new_full((1,), axes * points)])
        self._weights = weights.T.contiguous()
        return torch.cat(occupied)

    @property
    def size(self) -> int:
        """Occupied corners of the lattice."""
        return len(self._starts) - 1

    def scale(self, factor: Tensor) -> None:
        """Let the kernel be factor_i k(i, j) factor_j from here on, at no cost for `filter`.

        Shape:
            factor: [P]
        """
        factor = factor.float()
        self._weights.mul_(factor.unsqueeze(1))
        self._source_weights.mul_(factor[self._sources])

    def filter(self, values: Tensor) -> Tensor:
        """The sums, each point's own value included.

        Shape:
            values, returns: [P, K] float32
        """
        weights = self._source_weights
        table = F.embedding_bag(
            self._sources, values, self._starts, mode="sum", per_sample_weights=weights
        )
        corners = table[:-1].mul_(self._scale)
        around, other = torch.empty_like(corners), torch.empty_like(corners)
        for after, before in self._neighbours:
            torch.index_select(table, 0, after, out=around)
            torch.index_select(table, 0, before, out=other)
            corners.mul_(0.5).add_(around.add_(other), alpha=0.25)
        return F.embedding_bag(self._corner, table, mode="sum", per_sample_weights=self._weights)

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


def _neighbours(occupied: Tensor, radix: list[int]) -> list[tuple[Tensor, Tensor]]:
    """The corners one step after and one step before each, along every axis.

    Shape:
        occupied: keys [V]
        returns: int32 [V] each, V where there is none
    """
    size, axes, whole = len(occupied), len(radix), sum(radix)
    occupied, place = occupied.sort()
    steps = occupied.new_tensor([axes * value - whole for value in radix])
    wanted = occupied + steps.unsqueeze(1)
    at = torch.searchsorted(occupied, wanted).clamp_(max=size - 1)
    found = torch.where(occupied[at] == wanted, place[at], size)
    numbers = torch.arange(size, dtype=torch.int32, device=occupied.device)
    pairs = []
    for row in found:
        after = torch.empty_like(numbers).scatter_(0, place, row.int())
        before = after.new_full((size + 1,), size).scatter_(0, after.long(), numbers)
        pairs.append((after, before[:-1]))
    return pairs


def _elevate(features: Tensor) -> Tensor:
    """The points in the lattice's plane, where the coordinates sum to 0 (Adams, 3.1).

    Shape:
        features: [P, d]
        returns: [d + 1, P]
    """
    points, dims = features.shape
    scale = (dims + 1) * math.sqrt(2 / 3)
    elevated = features.new_empty(dims + 1, points)
    tail = features.new_zeros(points)  # coordinate i is sum_{j > i} s_j - i s_i
    for number in range(dims, 0, -1):
        scaled = features[:, number - 1] * (scale / math.sqrt(number * (number + 1)))
        torch.sub(tail, scaled, alpha=number, out=elevated[number])
        tail += scaled
    elevated[0] = tail
    return elevated


def _radix(elevated: Tensor) -> tuple[list[int], list[int]]:
    """The least value of each coordinate of a corner, and what it counts in an integer key.

    The last coordinate follows from the others and counts nothing.
    """
    axes = len(elevated)
    least, most = torch.aminmax(elevated, dim=1)
    low = [math.floor(value) - 3 * axes for value in least.tolist()]
    spans = [math.ceil(value) + 3 * axes - start for value, start in zip(most, low, strict=True)]
    if math.prod(spans[:-1]) >= 2**62:
        raise OptionError(
            f"the kernel is too narrow for the lattice ({spans[:-1]} cells): "
            "raise the standard deviations"
        )
    radix = [math.prod(spans[axis + 1 : -1]) for axis in range(axes - 1)]
    return low, [*radix, 0]


def _simplices(
    elevated: Tensor, low: list[int], radix: list[int], keys: Tensor, weights: Tensor
) -> None:
    """Find the corners of each point's simplex and the point's barycentric weights there.

    Shape:
        elevated: [d + 1, P]
        keys: int64 [d + 1, P], filled with one integer for each corner
        weights: [d + 1, P], filled
    """
    axes = len(elevated)
    base = (elevated / axes).round_().mul_(axes)
    rank = _ranks(elevated - base)
    rank += base.sum(0).div_(axes)
    shift = (rank < 0).to(base.dtype).sub_((rank >= axes).to(base.dtype)).mul_(axes)
    rank += shift
    base += shift

    ordered = _sorted((elevated - base).div_(axes))
    weights[0] = 1 - ordered[0] + ordered[-1]
    for number in range(1, axes):
        torch.sub(ordered[-1 - number], ordered[-number], out=weights[number])

    keys[0] = -sum(start * value for start, value in zip(low, radix, strict=True))
    for axis, value in enumerate(radix[:-1]):
        keys[0].add_(base[axis].long(), alpha=value)
    # From a corner to the next, all coordinates rise by 1 and that of the least offset falls.
    chosen = torch.empty_like(keys[0])
    for number in range(1, axes):
        torch.add(keys[number - 1], sum(radix), out=keys[number])
        for axis, value in enumerate(radix[:-1]):
            torch.eq(rank[axis], axes - number, out=chosen)
            keys[number].sub_(chosen, alpha=axes * value)


def _ranks(values: Tensor) -> Tensor:
    """How many of a column stand before each of its values, from the largest on: [n, P]."""
    rank = torch.zeros_like(values)
    before = torch.empty_like(values[0])
    for first in range(len(values)):
        for second in range(first + 1, len(values)):
            torch.lt(values[first], values[second], out=before)
            rank[first].add_(before)
            rank[second].add_(1 - before)
    return rank


def _sorted(values: Tensor) -> list[Tensor]:
    """Rows of which every column falls, by exchanges; a few long rows are sorted fast that way."""
    rows = list(values)
    for end in range(len(rows) - 1, 0, -1):
        for place in range(end):
            above, below = rows[place], rows[place + 1]
            rows[place], rows[place + 1] = torch.maximum(above, below), torch.minimum(above, below)
    return rows
