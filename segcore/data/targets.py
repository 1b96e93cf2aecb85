"""From labels of a row of a shard to targets of a batch: the loader's half of a kind of task."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from segcore.data.shard_format import Row
from segcore.data.transforms import Augmentation

Label = Any
Size = tuple[int, int]


class Described(Protocol):
    """What holds for all images of a dataset; `ShardedDataset` and `PackageSpec` both say it."""

    @property
    def num_classes(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]: ...
    @property
    def things(self) -> tuple[bool, ...]: ...
    @property
    def ignore_index(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class Source(Protocol):
    """Rows of a split behind a cache (`segcore.data.rows`)."""

    def prepare(self, rows: Any) -> None:
        """Bring rows into memory."""

    def read(self, index: int) -> tuple[Tensor, Label]:
        """Image uint8 [C, H, W] and label of a row; not to be written to."""

    def gather(self, rows: Any) -> tuple[Tensor, Tensor]:
        """Images [N, C, H, W] and label maps [N, H, W] of rows of one size."""


class Targets:
    """How labels are read, kept between epochs, changed with their image, and put into a batch.

    A *label* is what is read from a row once, and kept as long as the decoded image is; so it is
    better small (run lengths, not masks). A *target* is made from it for each batch.
    """

    what: str
    """Name of a label in messages: "mask"."""

    maps: bool = False
    """A label is the row's mask, uint8 [H, W]: the cache holds it decoded beside the image."""

    any_size: bool = False
    """Images of unlike sizes may share a batch: `collate` makes lists."""

    def is_labelled(self, row: Row) -> bool:
        """Whether a row has labels of this kind; one that is trained or scored on needs them."""
        raise NotImplementedError

    def label(self, row: Row) -> Label:
        """The label of a row that has one; not asked for where labels are `maps`.

        Raises:
            DataError: it is damaged.
        """
        raise NotImplementedError

    def items(self, label: Label, size: Size) -> list[Tensor]:
        """The tv_tensors of a label that change along with its image, (height, width) `size`.

        A `Mask` [H, W] is a map of classes, filled with `ignore_index` where it comes from outside
        the image; a `Mask` [n, H, W] holds objects, filled with 0; `BoundingBoxes` and `KeyPoints`
        move. What vanishes from the picture is for `target` to drop.
        """
        raise NotImplementedError

    def target(self, items: list[Tensor], label: Label, size: Size) -> Any:
        """The target of one image from what became of `items`, at the image's size now."""
        raise NotImplementedError

    def collate(self, images: Sequence[Tensor], targets: Sequence[Any]) -> dict[str, Any]:
        """`{"image": ..., "target": ...}` of uint8 images [C, H, W]; the loader adds "id"."""
        raise NotImplementedError

    def gather(self, source: Source, rows: Any) -> dict[str, Any]:
        """A batch of rows as they are stored."""
        source.prepare(rows)
        images, targets = [], []
        for row in rows:
            image, label = source.read(int(row))
            size = (image.shape[-2], image.shape[-1])
            images.append(image)
            targets.append(self.target(self.items(label, size), label, size))
        return self.collate(images, targets)

    def augment(
        self,
        augmentation: Augmentation,
        image: Tensor,
        label: Label,
        *,
        rng: np.random.Generator,
        over: tuple[int, int] | None,
    ) -> tuple[Tensor, Any]:
        """Image and target of a row, changed alike; arguments as `Augmentation.__call__`."""
        from torchvision import tv_tensors

        size = (image.shape[-2], image.shape[-1])
        given = [tv_tensors.Image(image), *self.items(label, size)]
        changed, *items = augmentation.apply(given, size, rng, over=over)
        image = changed.as_subclass(Tensor)
        return image, self.target(items, label, (image.shape[-2], image.shape[-1]))


class ClassMaps(Targets):
    """A class for every pixel: label uint8 [H, W] as stored, target int64 [H, W]."""

    what = "mask"
    maps = True

    def is_labelled(self, row: Row) -> bool:
        """Whether it has a mask."""
        return row.mask is not None

    def collate(self, images: Sequence[Tensor], targets: Sequence[Any]) -> dict[str, Any]:
        """Images uint8 [N, C, H, W], targets int64 [N, H, W]; all of one size."""
        return {"image": torch.stack(list(images)), "target": torch.stack(list(targets)).long()}

    def gather(self, source: Source, rows: Any) -> dict[str, Any]:
        """As `collate`, in one copy from the cache."""
        images, maps = source.gather(rows)
        return {"image": images, "target": maps.long()}

    def augment(
        self,
        augmentation: Augmentation,
        image: Tensor,
        label: Label,
        *,
        rng: np.random.Generator,
        over: tuple[int, int] | None,
    ) -> tuple[Tensor, Any]:
        """Image and label map; int64 is made for the whole batch."""
        return augmentation(image, label, rng=rng, over=over)
