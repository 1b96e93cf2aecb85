"""Class scores of an image larger than memory allows: overlapping tiles, band after band of rows.

A tile's own border is computed without what lies beyond it. So the outer quarter of each overlap
is thrown away, and what is left of two tiles is blended, each weighted by a Gaussian around its
centre. Of the sums only the rows that later tiles still add to are held.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGN = 64  # pixels: tiles start on multiples, as strided layers sample the whole image there
MAX_TILE = 2048
MIN_TILE = 256
MAX_OVERLAP = 256
CENTRE_SHARE = 1 / 8  # standard deviation of a tile's weights, in sides of the tile
LEAST_WEIGHT = 1e-6
FLOAT_BYTES = 4

# Scores [..., h, w] of the pixels top <= y < bottom, left <= x < right.
Run = Callable[[int, int, int, int], Tensor]


@dataclass(frozen=True)
class Span:
    """One tile along one axis: computed from `start` to `stop`, used from `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int

    def weights(self, tile: int) -> Tensor:
        """Positive weights of the used pixels, largest at the centre of the tile."""
        place = torch.arange(self.first, self.last, dtype=torch.float32) + 0.5
        distance = (place - (self.start + self.stop) / 2) / (CENTRE_SHARE * tile)
        return torch.exp(-0.5 * distance.square()).clamp_min(LEAST_WEIGHT)


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles of one axis that cover `length` pixels.

    Args:
        length: of the axis, >= 1.
        tile: largest side of a tile, a multiple of `ALIGN`.
        overlap: of neighbours, a multiple of `ALIGN` below `tile`; more between the last two.
    """
    step = tile - overlap
    starts = [0]
    while starts[-1] + tile < length:
        # The last tile starts where it still reaches the end, on the grid of the others.
        reach = -(-(length - tile) // ALIGN) * ALIGN
        starts.append(min(starts[-1] + step, reach))
    spare = overlap // 4
    return [
        Span(
            start,
            min(start + tile, length),
            first=start + spare if start else 0,
            last=start + tile - spare if start + tile < length else length,
        )
        for start in starts
    ]


def choose_tile(
    size: tuple[int, int], *, pixel_bytes: float, score_bytes: float, budget: float
) -> int | None:
    """Largest side of a tile within a budget of memory; None if the whole image fits in one pass.

    Args:
        size: (height, width).
        pixel_bytes: that a pass of the model needs for a pixel of its input.
        score_bytes: that the scores of one pixel take.
        budget: bytes.
    """
    height, width = size
    if height * width * pixel_bytes <= budget:
        return None
    for tile in range(MAX_TILE, MIN_TILE, -ALIGN):
        inside = min(tile, height) * min(tile, width)
        band = min(tile, height) * width
        if inside * pixel_bytes + band * score_bytes <= budget:
            return tile
    return MIN_TILE


def overlap_of(tile: int) -> int:
    """Overlap that a side of a tile asks for: a quarter of it, up to `MAX_OVERLAP`."""
    return max(ALIGN, min(MAX_OVERLAP, tile // 4 // ALIGN * ALIGN))


def blend(
    run: Run, size: tuple[int, int], *, tile: int, overlap: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Blended scores of an image, in bands of rows from the top.

    Away from the borders of tiles they are those of the whole image. They are so everywhere for a
    model whose outputs see no further than a quarter of the overlap.

    Args:
        run: the model on a part of the image.
        size: (height, width) of the image.
        tile: side of a tile, a multiple of `ALIGN`.
        overlap: of neighbours, likewise; None takes `overlap_of(tile)`.

    Yields:
        Number of the first row, and scores [..., rows, W] in float32.
    """
    height, width = size
    overlap = overlap_of(tile) if overlap is None else overlap
    columns = spans(width, tile, overlap)
    rows = spans(height, tile, overlap)
    held: Tensor | None = None  # sums of scores, with their weights as one more entry of K
    for index, row in enumerate(rows):
        band = _band(run, row, columns, width=width, tile=tile)
        if held is not None:
            shared = held.shape[-2]
            band[..., :shared, :] += held
        done = rows[index + 1].first if index + 1 < len(rows) else height
        ready, held = torch.split(band, [done - row.first, row.last - done], dim=-2)
        held = held.clone()
        scores, weights = ready[..., :-1, :, :], ready[..., -1:, :, :]
        yield row.first, scores.div_(weights)
        del band, ready, scores, weights  # before the next band is made


def _band(run: Run, row: Span, columns: list[Span], *, width: int, tile: int) -> Tensor:
    """Weighted sums of one row of tiles [..., K + 1, rows, W]; the last entry sums the weights."""
    total: Tensor | None = None
    down = row.weights(tile)
    for column in columns:
        scores = run(row.start, row.stop, column.start, column.stop)
        used = scores[
            ...,
            row.first - row.start : row.last - row.start,
            column.first - column.start : column.last - column.start,
        ]
        if total is None:
            shape = (*used.shape[:-3], used.shape[-3] + 1, used.shape[-2], width)
            total = torch.zeros(shape, device=used.device)
        weights = torch.outer(down, column.weights(tile)).to(used.device)
        part = total[..., column.first : column.last]
        part[..., :-1, :, :].addcmul_(used, weights)
        part[..., -1, :, :] += weights
    if total is None:
        raise ValueError("an image without columns has no tiles")
    return total


def upsampled(logits: Tensor, size: tuple[int, int], window: tuple[int, int, int, int]) -> Tensor:
    """A part of `interpolate(logits, size, mode="bilinear")`.

    Args:
        logits: [K, h, w].
        size: (height, width) of the whole result.
        window: its rows top <= y < bottom and columns left <= x < right that are wanted.
    """
    top, bottom, left, right = window
    lines = _between(logits, 1, size[0], range(top, bottom))
    return _between(lines, 2, size[1], range(left, right))


def _between(values: Tensor, dim: int, length: int, wanted: range) -> Tensor:
    """Some of `length` positions along an axis, linear between the values that are there."""
    count = values.shape[dim]
    place = torch.arange(wanted.start, wanted.stop, device=values.device, dtype=torch.float32)
    place = ((place + 0.5) * (count / length) - 0.5).clamp_min(0)
    low = place.long().clamp_max(count - 1)
    share = (place - low).view([-1 if axis == dim else 1 for axis in range(values.dim())])
    above = values.index_select(dim, (low + 1).clamp_max(count - 1))
    return torch.lerp(values.index_select(dim, low), above, share)
