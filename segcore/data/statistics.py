"""What training needs to know of a dataset, from what validation counted: exact, in one pass."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from segcore.data.fingerprint import fingerprint
from segcore.data.inspection import Inspection
from segcore.data.sample import DatasetInfo, Sample
from segcore.data.shard_format import PixelCounts, ShardMeta


def measure(
    samples: Sequence[Sample],
    found: Sequence[Inspection],
    info: DatasetInfo,
    *,
    size: tuple[int, int] | None,
    image_encoding: str,
) -> ShardMeta:
    """Channels of all splits; mean, standard deviation and pixel counts of the training split.

    The fingerprint is part of it.
    """
    training = [f for s, f in zip(samples, found, strict=True) if s.split == "train"]
    in_channels = 1 if found and all(inspection.grey for inspection in found) else 3
    mean, std = _normalisation(training, in_channels)
    return ShardMeta(
        info=replace(info, mask_values={}, mask_colors={}, assumptions=()),
        in_channels=in_channels,
        size=size,
        mean=mean,
        std=std,
        pixel_counts=_count(training, info),
        image_encoding=image_encoding,
        fingerprint=fingerprint(samples, found, info, in_channels),
    )


def _normalisation(
    training: Iterable[Inspection], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pixels = 0
    sums, squares = [0] * channels, [0] * channels
    for inspection in training:
        pixels += inspection.size[0] * inspection.size[1]
        grey = len(inspection.sums) == 1
        for channel in range(channels):
            source = 0 if grey else channel
            sums[channel] += inspection.sums[source]
            squares[channel] += inspection.squares[source]
    mean = [total / max(pixels, 1) for total in sums]
    variance = [s / max(pixels, 1) - m * m for s, m in zip(squares, mean, strict=True)]
    std = [max(v, 0.0) ** 0.5 for v in variance]
    return tuple(m / 255 for m in mean), tuple(s / 255 if s > 0 else 1.0 for s in std)


def _count(training: Iterable[Inspection], info: DatasetInfo) -> PixelCounts:
    pixels = np.zeros(info.num_classes, dtype=np.int64)
    image_pixels = np.zeros(info.num_classes, dtype=np.int64)
    for inspection in training:
        if inspection.values is None:
            continue
        counts = inspection.values[: info.num_classes].copy()
        if 0 <= info.ignore_index < info.num_classes:
            counts[info.ignore_index] = 0
        pixels += counts
        image_pixels[counts > 0] += int(inspection.values.sum())
    return PixelCounts(
        pixels=pixels.tolist(), image_pixels=image_pixels.tolist(), total=int(pixels.sum())
    )
