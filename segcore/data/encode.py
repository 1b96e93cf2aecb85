"""One validated sample to one row of a shard."""

import hashlib
from dataclasses import dataclass

import numpy as np

from segcore.data.codec import (
    encode_image,
    encode_mask,
    open_image,
    resize_image,
    resize_mask,
    to_array,
)
from segcore.data.inspection import Inspection, file_name, read_bytes
from segcore.data.labels import is_index_png, read_labels
from segcore.data.objects import resize_instance
from segcore.data.sample import DatasetInfo, Instance, Sample
from segcore.data.shard_format import Row
from segcore.errors import DataError

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG"


@dataclass(frozen=True)
class Encoding:
    """How samples are stored.

    Args:
        info: how the source encodes masks.
        size: (height, width) to bring images and masks to; None: as they are.
        image_encoding: "keep", "png", "jpeg" or "raw". An image of more than 8 bits per channel
            is never kept: it is stored in 8 (`codec.to_eight_bit`), as PNG under "keep".
        channels: of images that are encoded anew: 1 or 3.
    """

    info: DatasetInfo
    size: tuple[int, int] | None
    image_encoding: str
    channels: int

    def row(self, item: tuple[Sample, Inspection]) -> Row:
        """Encode a sample, given what validation found in it.

        Raises:
            DataError: its image has changed since.
        """
        sample, found = item
        encoded = read_bytes(sample.image)
        if hashlib.sha256(encoded).hexdigest() != found.source_sha256:
            name = file_name(sample.image, sample)
            raise DataError(f"{name} has changed while it was read: run prepare again")
        sample, _ = sample.resolve()
        height, width = found.size
        return Row(
            id=sample.id,
            image=self._image(encoded, found.deep),
            mask=None if sample.mask is None else self._mask(read_bytes(sample.mask)),
            instances=self._instances(sample, encoded),
            labels=image_classes(sample, found, self.info),
            height=height,
            width=width,
            source_sha256=found.source_sha256,
        )

    def _image(self, encoded: bytes, deep: bool) -> bytes:
        wanted, as_is = self.image_encoding, self.size is None and not deep
        magic = {"png": PNG_MAGIC, "jpeg": JPEG_MAGIC}.get(wanted, b"never")
        if as_is and (wanted == "keep" or encoded.startswith(magic)):
            return encoded
        if wanted == "keep":
            wanted = "jpeg" if encoded.startswith(JPEG_MAGIC) else "png"
        image = open_image(encoded)
        if self.size is not None:
            image = resize_image(image, self.size)
        return encode_image(to_array(image, self.channels), wanted)

    def _mask(self, encoded: bytes) -> bytes:
        mapped = self.info.mask_values or self.info.mask_colors
        if self.size is None and not mapped and is_index_png(encoded):
            return encoded
        mask = read_labels(encoded, self.info)
        return encode_mask(mask if self.size is None else resize_mask(mask, self.size))

    def _instances(self, sample: Sample, encoded: bytes) -> tuple[Instance, ...] | None:
        if sample.instances is None or self.size is None:
            return sample.instances
        image = open_image(encoded)
        resized = (
            resize_instance(instance, (image.height, image.width), self.size)
            for instance in sample.instances
        )
        return tuple(instance for instance in resized if instance is not None)


def image_classes(sample: Sample, found: Inspection, info: DatasetInfo) -> tuple[int, ...] | None:
    """Classes that occur in an image, ascending where they are derived; None if nothing tells.

    Args:
        sample: with its instances, if it has any (`Sample.resolve`).
        found: what its mask holds.
        info: of its dataset.
    """
    if sample.labels is not None:
        return sample.labels
    if found.values is not None:
        present = np.flatnonzero(found.values[: info.num_classes]).tolist()
        return tuple(i for i in present if i != info.ignore_index)
    if sample.instances is not None:
        return tuple(sorted({instance.category for instance in sample.instances}))
    return None
