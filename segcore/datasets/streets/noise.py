"""Value noise: one periodic tile of fractal noise, made once and read everywhere at some scale."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
TILE = 512


@cache
def tile(first: int = 2, last: int = 8, persistence: float = 0.6) -> FloatArray:
    """Sum octaves of smooth value noise to a periodic tile [TILE, TILE] of mean 0.5 in 0..1.

    Args:
        first: the coarsest lattice has 2**first cells per side.
        last: the finest lattice has 2**last cells per side.
        persistence: amplitude of an octave relative to the one before.
    """
    rng = np.random.default_rng(7)
    total = np.zeros((TILE, TILE))
    for octave in range(first, last + 1):
        cells = 2**octave
        lattice = rng.random((cells, cells))
        position = np.arange(TILE) * cells / TILE
        low = position.astype(int)
        t = position - low
        t = t * t * (3 - 2 * t)
        high = (low + 1) % cells
        rows = lattice[low] * (1 - t)[:, None] + lattice[high] * t[:, None]
        total += persistence**octave * (rows[:, low] * (1 - t) + rows[:, high] * t)
    total = 0.5 + 0.21 * (total - total.mean()) / total.std()
    result: FloatArray = np.clip(total, 0, 1).astype(np.float32)
    return result


def fine() -> FloatArray:
    """Tile of noise without large structure: grain, leaves, blades of grass."""
    return tile(6, 9, 0.8)


def look(noise: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Read a tile at positions in tile lengths, by nearest neighbour (for fine detail)."""
    column = (x * TILE).astype(np.int32) & (TILE - 1)
    row = (y * TILE).astype(np.int32) & (TILE - 1)
    return np.asarray(noise.ravel().take(row * TILE + column))


def smooth(noise: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Read a tile at positions in tile lengths, bilinearly (for large shapes)."""
    x, y = np.asarray(x * TILE, np.float32), np.asarray(y * TILE, np.float32)
    left, top = np.floor(x), np.floor(y)
    tx, ty = x - left, y - top
    column, row = left.astype(np.int32) & (TILE - 1), top.astype(np.int32) & (TILE - 1)
    right, below = (column + 1) & (TILE - 1), ((row + 1) & (TILE - 1)) * TILE
    row *= TILE
    flat = noise.ravel()
    upper, lower = flat.take(row + column), flat.take(below + column)
    upper += (flat.take(row + right) - upper) * tx
    lower += (flat.take(below + right) - lower) * tx
    return np.asarray(upper + (lower - upper) * ty)


def smoothstep(low: float, high: float, x: FloatArray) -> FloatArray:
    """Rise from 0 at `low` to 1 at `high` with flat ends."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def hashed(*keys: NDArray[np.int32]) -> FloatArray:
    """Map integers to numbers in 0..1 that look random and depend on nothing else."""
    value = np.zeros(np.broadcast_shapes(*(key.shape for key in keys)), np.uint32)
    for key in keys:
        value = (value ^ key.astype(np.uint32)) * np.uint32(2654435761)
        value ^= value >> np.uint32(15)
    return (value >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)
