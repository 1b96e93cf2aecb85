"""Rows of a split as tensors: decoded on every read, or kept decoded in one flat buffer.

Decoding costs more than everything else that a loader does, so the decoded uint8 pixels of a split
lie one after another, all images first, each as [C, H, W], then all label maps, each as [H, W].
Labels of kinds of tasks that have no maps are kept as they were read, in memory.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segcore.data.shard_format import Row
from segcore.data.targets import ClassMaps, Label, Targets
from segcore.errors import DataError

Rows = npt.NDArray[np.int64]
T = TypeVar("T")
CLASS_MAPS = ClassMaps()


class Split(Protocol):
    """What a loader needs of one split of a dataset (`segcore.data.shards.ShardSplit`)."""

    @property
    def ids(self) -> Sequence[str]:
        """Unique name of each row."""

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """(height, width) of each row."""

    def __len__(self) -> int:
        """Number of rows."""

    def decode(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        """Image as uint8 [H, W, C] and label map [H, W], or None where there is none."""

    def read(self, index: int) -> Row:
        """One row as it is stored; asked for where labels are no maps."""


def read_label(split: Split, index: int, targets: Targets) -> Label | None:
    """The label of a row, without its image; None if it has none.

    Raises:
        DataError: it is damaged; names the row.
    """
    row = split.read(index)
    try:
        return targets.label(row) if targets.is_labelled(row) else None
    except DataError as error:
        raise DataError(f"sample {row.id}: {error}") from error


def decode_labelled(
    split: Split, index: int, targets: Targets
) -> tuple[npt.NDArray[np.uint8], Label | None]:
    """Image uint8 [H, W, C] of a row, and its label; None if it has none.

    Raises:
        DataError: one of them is damaged; names the row.
    """
    image, mask = split.decode(index)
    return image, mask if targets.maps else read_label(split, index, targets)


def decode_row(split: Split, index: int, targets: Targets = CLASS_MAPS) -> tuple[Tensor, Label]:
    """Decode one labelled row.

    Returns:
        image uint8 [C, H, W], and its label: uint8 [H, W] where labels are maps.

    Raises:
        DataError: the row has no label.
    """
    image, label = decode_labelled(split, index, targets)
    if label is None:
        raise _unlabelled(split, index, targets)
    if image.ndim == 2:
        image = image[:, :, None]
    # Copies: what a decoder returns may not be writable, which torch warns of. Torch transposes.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels, torch.from_numpy(np.array(label)) if targets.maps else label


def _unlabelled(split: Split, index: int, targets: Targets) -> DataError:
    return DataError(
        f"image {split.ids[index]!r} has no {targets.what}: a split that is trained or scored on "
        "needs one for every image; put unlabelled images into the split 'unlabelled'"
    )


def in_threads(call: Callable[[int], T], rows: Iterable[int], threads: int) -> list[T]:
    """Apply a function to rows, several at a time: decoders release the interpreter's lock."""
    if threads < 2:
        return [call(row) for row in rows]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, rows))


class DecodedRows:
    """Rows of a split, decoded again on every read (`cache="none"`).

    Args:
        split: source of the rows.
        targets: what its labels are.
        threads: that decode the rows of one batch.
    """

    def __init__(self, split: Split, *, targets: Targets = CLASS_MAPS, threads: int = 1) -> None:
        self.split = split
        self.targets = targets
        self.threads = threads

    def read(self, index: int) -> tuple[Tensor, Label]:
        """Row `index` as image uint8 [C, H, W] and label; not to be written to."""
        return decode_row(self.split, index, self.targets)

    def gather(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Rows of one size as images uint8 [N, C, H, W] and label maps [N, H, W]."""
        images, masks = zip(*in_threads(self.read, rows.tolist(), self.threads), strict=True)
        return torch.stack(images), torch.stack(masks)

    def prepare(self, rows: Rows) -> None:
        """Nothing is kept, so there is nothing to prepare."""


class Layout:
    """Where each row of a split lies in the flat buffer.

    Args:
        sizes: (height, width) of each row.
        channels: of every image.
        maps: whether label maps lie behind the images.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], *, channels: int, maps: bool = True
    ) -> None:
        self.sizes = [(int(h), int(w)) for h, w in sizes]
        self.channels = channels
        self.maps = maps
        pixels = np.array([h * w for h, w in self.sizes], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(pixels)]).astype(np.int64)
        self.total_pixels = int(self.starts[-1])
        self.uniform = self.sizes[0] if len(set(self.sizes)) == 1 else None

    @property
    def image_bytes(self) -> int:
        """Of all images; the label maps follow."""
        return self.total_pixels * self.channels

    @property
    def total_bytes(self) -> int:
        return self.image_bytes + (self.total_pixels if self.maps else 0)


class CachedRows:
    """Rows of a split in one flat buffer; a row is checked or decoded when first read.

    Threads may read at once.

    Args:
        split: source of rows that are not in the buffer yet.
        layout: of the buffer.
        buffer: uint8 [layout.total_bytes].
        targets: what the labels are.
        checksums: CRC-32 of each row that the buffer already holds; None where it holds none.
        threads: that decode missing rows.
        block: rows that are brought in together, those that a shard stores side by side: it reads
            them at one go, and would read them again for each.
    """

    def __init__(
        self,
        split: Split,
        layout: Layout,
        buffer: npt.NDArray[np.uint8],
        *,
        targets: Targets = CLASS_MAPS,
        checksums: npt.NDArray[np.uint32] | None = None,
        threads: int = 1,
        block: int = 1,
    ) -> None:
        self.split = split
        self.layout = layout
        self.targets = targets
        self.checksums = checksums
        self.threads = threads
        self.block = block
        self.filling = Lock()
        self.ready = np.zeros(len(layout.sizes), dtype=bool)
        images = torch.from_numpy(buffer[: layout.image_bytes])
        masks = torch.from_numpy(buffer[layout.image_bytes :])
        self.images, self.masks = images, masks
        self.labels: list[Label] = [] if layout.maps else [None] * len(layout.sizes)
        if layout.uniform is not None:
            height, width = layout.uniform
            self.images = images.view(-1, layout.channels, height, width)
            self.masks = masks.view(-1, height, width) if layout.maps else masks

    def read(self, index: int) -> tuple[Tensor, Label]:
        """Row `index` as image uint8 [C, H, W] and label; not to be written to."""
        if not self.ready[index]:
            self.fill(index)
        image, mask = self.views(index)
        return image, mask if self.layout.maps else self.labels[index]

    def gather(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Rows of one size as images uint8 [N, C, H, W] and label maps [N, H, W]."""
        self.prepare(rows)
        if self.layout.uniform is None:
            images, masks = zip(*(self.views(int(row)) for row in rows), strict=True)
            return torch.stack(images), torch.stack(masks)
        index = torch.from_numpy(rows)
        return self.images.index_select(0, index), self.masks.index_select(0, index)

    def prepare(self, rows: Rows) -> None:
        """Bring those of the rows into the buffer that are missing."""
        if self.ready[rows].all():
            return
        with self.filling:
            blocks = np.unique(rows[~self.ready[rows]] // self.block)
            wanted = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
            wanted = wanted[wanted < len(self.ready)]
            in_threads(self.fill, wanted[~self.ready[wanted]].tolist(), self.threads)

    def fill(self, index: int) -> None:
        """Bring one row into the buffer, unless it is there and matches its checksum."""
        image, mask = self.views(index)
        if self.checksums is None or self.checksums[index] != checksum(image, mask):
            self._decode_into(index, image, mask)
        elif not self.layout.maps:
            label = read_label(self.split, index, self.targets)
            if label is None:
                raise _unlabelled(self.split, index, self.targets)
            self.labels[index] = label
        self.ready[index] = True

    def _decode_into(self, index: int, image: Tensor, mask: Tensor) -> None:
        new_image, label = decode_row(self.split, index, self.targets)
        new_mask = label if self.layout.maps else mask
        if new_image.shape != image.shape or new_mask.shape != mask.shape:
            raise DataError(
                f"image {self.split.ids[index]!r} decodes to {tuple(new_image.shape)} with a mask "
                f"of {tuple(new_mask.shape)}, expected {tuple(image.shape)} and "
                f"{tuple(mask.shape)}: the shards contradict themselves, run prepare again"
            )
        image.copy_(new_image)
        if self.layout.maps:
            mask.copy_(new_mask)
        else:
            self.labels[index] = label

    def views(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and label map in the buffer; an empty map where labels are none."""
        if self.layout.uniform is not None:
            return self.images[index], self.masks[index] if self.layout.maps else self.masks
        height, width = self.layout.sizes[index]
        start, stop = int(self.layout.starts[index]), int(self.layout.starts[index + 1])
        channels = self.layout.channels
        image = self.images[start * channels : stop * channels].view(channels, height, width)
        if not self.layout.maps:
            return image, self.masks
        return image, self.masks[start:stop].view(height, width)


def checksum(image: Tensor, mask: Tensor) -> int:
    """CRC-32 of the bytes of an image and then its label map."""
    return zlib.crc32(mask.numpy().data, zlib.crc32(image.numpy().data))
