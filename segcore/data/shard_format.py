"""The format of shards: Parquet schema, rows, and what the schema metadata says.

The columns follow the Hugging Face `datasets` convention, so that `datasets`, DuckDB, Ray Data
and pyarrow open the files without this library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pyarrow as pa

from segcore.data.sample import DatasetInfo, Instance

FORMAT = 2
ROW_GROUP = 16
MANIFEST = "manifest.json"

_ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_INSTANCE = pa.struct(
    [
        ("category", pa.int32()),
        ("bbox", pa.list_(pa.float32())),
        ("area", pa.float32()),
        ("iscrowd", pa.bool_()),
        ("counts", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", _ENCODED),
        ("mask", _ENCODED),
        ("instances", pa.list_(_INSTANCE)),
        ("labels", pa.list_(pa.int32())),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("source_sha256", pa.string()),
    ]
)


class PixelCounts(TypedDict):
    """Pixels of the training split per class: what loss weights are derived from.

    Keys:
        pixels: per class, its pixels.
        image_pixels: per class, all pixels (void included) of the images in which it occurs.
        total: labelled pixels.
    """

    pixels: list[int]
    image_pixels: list[int]
    total: int


@dataclass(frozen=True)
class Row:
    """One row of a shard.

    Args:
        id: unique in the dataset.
        image: encoded image; PNG, JPEG or NumPy's .npy (`image_encoding: raw`).
        mask: PNG of class indices; None if unlabelled.
        instances: objects of the image; None where the dataset has none.
        labels: classes that occur in the image; None if unlabelled.
        height, width: of the stored image, in pixels.
        source_sha256: of the source's image file, before any re-encoding.
    """

    id: str
    image: bytes
    mask: bytes | None
    instances: tuple[Instance, ...] | None
    labels: tuple[int, ...] | None
    height: int
    width: int
    source_sha256: str

    def record(self) -> dict[str, Any]:
        """This row as `SCHEMA` takes it."""
        return {
            "id": self.id,
            "image": {"bytes": self.image, "path": f"{self.id}{_suffix(self.image)}"},
            "mask": self.mask and {"bytes": self.mask, "path": f"{self.id}.png"},
            "instances": None if self.instances is None else [_instance(i) for i in self.instances],
            "labels": None if self.labels is None else list(self.labels),
            "height": self.height,
            "width": self.width,
            "source_sha256": self.source_sha256,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Row":
        """Inverse of `record`."""
        instances = record["instances"]
        labels = record["labels"]
        return cls(
            id=record["id"],
            image=record["image"]["bytes"],
            mask=record["mask"] and record["mask"]["bytes"],
            instances=None
            if instances is None
            else tuple(Instance(**{**i, "bbox": tuple(i["bbox"])}) for i in instances),
            labels=None if labels is None else tuple(labels),
            height=record["height"],
            width=record["width"],
            source_sha256=record["source_sha256"],
        )


def _instance(instance: Instance) -> dict[str, Any]:
    return {
        "category": instance.category,
        "bbox": list(instance.bbox),
        "area": instance.area,
        "iscrowd": instance.iscrowd,
        "counts": instance.counts,
    }


_MAGIC = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"\x93NUMPY": ".npy",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
}


def _suffix(encoded: bytes) -> str:
    return next((end for magic, end in _MAGIC.items() if encoded.startswith(magic)), "")


@dataclass(frozen=True)
class ShardMeta:
    """What holds for all shards of a dataset, kept in the metadata of each.

    Args:
        info: the dataset; its masks are index maps by now.
        in_channels: channels of every decoded image: 1 if all images are grey, else 3.
        size: (height, width) that all images were brought to; None: each as its source.
        mean, std: of the training images per channel, in 0..1.
        pixel_counts: of the training masks.
        image_encoding: "keep", "png", "jpeg" or "raw".
        fingerprint: JSON values, as `fingerprint.fingerprint` describes them; empty where shards
            were written without it.
        origin: of the raw files, as `datasets.origin.read_origin` says it; empty where unknown.
    """

    info: DatasetInfo
    in_channels: int
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_counts: PixelCounts
    image_encoding: str = "keep"
    fingerprint: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The metadata that all splits share, as JSON values."""
        return {
            "format": FORMAT,
            "name": self.info.name,
            "version": self.info.version,
            "tasks": list(self.info.tasks),
            "classes": list(self.info.classes),
            "palette": [list(color) for color in self.info.palette],
            "ignore_index": self.info.ignore_index,
            "things": list(self.info.things),
            "in_channels": self.in_channels,
            "size": None if self.size is None else list(self.size),
            "image_encoding": self.image_encoding,
            "mean": list(self.mean),
            "std": list(self.std),
            "pixel_counts": dict(self.pixel_counts),
            "fingerprint": self.fingerprint,
            **({"origin": self.origin} if self.origin else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardMeta":
        """Inverse of `to_json`."""
        info = DatasetInfo(
            name=data["name"],
            version=data["version"],
            classes=tuple(data["classes"]),
            palette=tuple((r, g, b) for r, g, b in data["palette"]),
            ignore_index=data["ignore_index"],
            tasks=tuple(data["tasks"]),
            things=tuple(data["things"]),
        )
        counts = data["pixel_counts"]
        size = data["size"]
        return cls(
            info=info,
            in_channels=data["in_channels"],
            size=None if size is None else (size[0], size[1]),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            pixel_counts=PixelCounts(
                pixels=counts["pixels"], image_pixels=counts["image_pixels"], total=counts["total"]
            ),
            image_encoding=data["image_encoding"],
            fingerprint=dict(data["fingerprint"]),
            origin=dict(data.get("origin", {})),
        )


def split_schema(meta: ShardMeta, split: str, samples: int) -> pa.Schema:
    """`SCHEMA` with the metadata of one split: keys `segcore` and `huggingface`.

    Without the second, `datasets` leaves image and mask as undecoded structs.
    """
    described = {**meta.to_json(), "split": split, "samples": samples}
    return SCHEMA.with_metadata(
        {
            "segcore": json.dumps(described, sort_keys=True),
            "huggingface": json.dumps({"info": {"features": _features(meta)}}),
        }
    )


def _features(meta: ShardMeta) -> dict[str, Any]:
    features: dict[str, Any] = {field.name: _feature(field.type) for field in SCHEMA}
    features["mask"] = {"_type": "Image"}
    if meta.image_encoding != "raw":
        features["image"] = {"_type": "Image"}
    return features


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": "float32" if pa.types.is_float32(kind) else str(kind), "_type": "Value"}
