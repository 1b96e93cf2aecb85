"""Small shards of random pictures for the tests of loader, cache and transforms."""

from pathlib import Path

import numpy as np

from segcore.data.codec import encode_image, encode_mask
from segcore.data.sample import DatasetInfo
from segcore.data.shards import Row, ShardedDataset, ShardMeta, open_shards, write_shards

NAMES = ("a", "b", "c", "d", "e")
META = ShardMeta(
    info=DatasetInfo("toy", "1", NAMES, ((0, 0, 0),) * len(NAMES)),
    in_channels=3,
    size=None,
    mean=(0.2, 0.4, 0.6),
    std=(0.5, 0.5, 0.5),
    pixel_counts={"pixels": [1] * 5, "image_pixels": [1] * 5, "total": 5},
)


def pixels(number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A mask of random classes, and an image whose red channel is ten times the class."""
    rng = np.random.default_rng(number)
    mask = rng.integers(0, len(NAMES), size, dtype=np.uint8)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    image[:, :, 0] = mask * 10
    return image, mask


def size_of(number: int, mixed: bool) -> tuple[int, int]:
    """(height, width) of a picture; three sizes where they are mixed."""
    return ((20, 24), (24, 20), (16, 32))[number % 3] if mixed else (20, 24)


def make_row(item: tuple[int, bool]) -> Row:
    """Row `number`; numbers from 1000 on have no mask."""
    number, mixed = item
    size = size_of(number, mixed)
    image, mask = pixels(number, size)
    return Row(
        id=f"s{number}",
        image=encode_image(image, "png"),
        mask=encode_mask(mask) if number < 1000 else None,
        instances=None,
        labels=None,
        height=size[0],
        width=size[1],
        source_sha256=f"{number:064d}",
    )


def toy_dataset(
    path: Path, train: int = 23, val: int = 7, *, mixed: bool = False, first: int = 0
) -> ShardedDataset:
    """Shards with `train` training and `val` validation rows; ids are s0, s1, ... and s100, ..."""
    splits = {
        "train": [(number, mixed) for number in range(first, first + train)],
        "val": [(number, mixed) for number in range(100, 100 + val)],
    }
    write_shards(path, META, splits=splits, encode=make_row, rows_per_shard=10)
    return open_shards(path)
