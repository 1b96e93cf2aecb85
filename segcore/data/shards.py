"""Open and verify shards.

`shard_format` has the schema, `shard_writer` writes, `shard_split` reads rows.
"""

import hashlib
from pathlib import Path
from typing import Any

from segcore.data.class_points import CLASS_POINTS, ClassPoints, no_points, read_points
from segcore.data.place import Place
from segcore.data.published import published
from segcore.data.sample import SPLITS, DatasetInfo
from segcore.data.shard_format import FORMAT, MANIFEST, SCHEMA, PixelCounts, Row, ShardMeta
from segcore.data.shard_split import ShardSplit, corrupt, named
from segcore.data.shard_writer import write_shards
from segcore.errors import DataError, unknown_name
from segcore.schema import ANY, NUMBER, conform, parse_json

__all__ = [
    "SCHEMA",
    "ClassPoints",
    "PixelCounts",
    "Row",
    "ShardMeta",
    "ShardSplit",
    "ShardedDataset",
    "open_shards",
    "verify_shards",
    "write_shards",
]

_FILE = {"path": str, "bytes": int, "sha256": str}
MANIFEST_SHAPE = {
    "format": int,
    "splits": {str: int},
    "files": [{**_FILE, "rows": int}],
    "indices": [_FILE],
    "dataset": {
        "name": str,
        "version": str,
        "tasks": [str],
        "classes": [str],
        "palette": [[int]],
        "ignore_index": int,
        "things": [bool],
        "in_channels": int,
        "size": ([int], None),
        "image_encoding": str,
        "mean": [NUMBER],
        "std": [NUMBER],
        "pixel_counts": {"pixels": [int], "image_pixels": [int], "total": int},
        "fingerprint": {str: ANY},
    },
}


class ShardedDataset:
    """A dataset as `prepare` wrote it. Cheap to open and to pickle; no file stays open.

    Args:
        path: folder with `manifest.json`.
        manifest: its bytes.
        place: where the files are that it lists; None: in the same folder.
    """

    def __init__(self, path: Path, manifest: bytes, place: Place | None = None) -> None:
        self.path = path
        self.place = place or Place(path)
        self.digest = hashlib.sha256(manifest).hexdigest()
        try:
            content = parse_json(manifest)
            conform(content, {"format": ANY})
            if content["format"] != FORMAT:
                raise DataError(
                    f"{path / MANIFEST} has format {content['format']}, this version reads "
                    f"{FORMAT}: run the prepare stage again"
                )
            conform(content, MANIFEST_SHAPE)
            self.meta = ShardMeta.from_json(content["dataset"])
            self.splits: dict[str, int] = dict(content["splits"])
            self.files: list[dict[str, Any]] = list(content["files"])
            self.indices: list[dict[str, Any]] = list(content["indices"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path / MANIFEST} is no manifest ({error}): run the prepare stage again"
            ) from error

    @property
    def source(self) -> str | Path:
        """What another node opens: where the files are, if that is not `path`."""
        return self.path if self.place.address == str(self.path) else self.place.address

    @property
    def info(self) -> DatasetInfo:
        return self.meta.info

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def num_classes(self) -> int:
        return self.info.num_classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.info.palette

    @property
    def things(self) -> tuple[bool, ...]:
        """Per class, whether it is countable; empty where the dataset does not say."""
        return self.info.things

    @property
    def ignore_index(self) -> int:
        return self.info.ignore_index

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.info.tasks

    @property
    def task(self) -> str:
        """The first of `tasks`."""
        return self.info.tasks[0]

    @property
    def in_channels(self) -> int:
        return self.meta.in_channels

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every image; None: they differ or are as their sources."""
        return self.meta.size

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of the training images, in 0..1."""
        return self.meta.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of the training images, in 0..1."""
        return self.meta.std

    @property
    def pixel_counts(self) -> PixelCounts:
        return self.meta.pixel_counts

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Facts of the training split from which a training is planned (fingerprint.py)."""
        return self.meta.fingerprint

    def class_points(self) -> ClassPoints:
        """Where the classes are in the training images; read anew by each call.

        Raises:
            DataError: the file is corrupt.
        """
        if all(index["path"] != CLASS_POINTS for index in self.indices):
            return no_points()
        with named(self.place / CLASS_POINTS):
            return read_points(self.place.read(CLASS_POINTS))

    def split(self, name: str) -> ShardSplit:
        """The rows of one split; empty if the dataset has none of them.

        Raises:
            UnknownNameError: no such split.
        """
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS)
        files = [file for file in self.files if file["path"].startswith(f"{name}/")]
        return ShardSplit(self.place, files, self.in_channels)


def open_shards(path: str | Path) -> ShardedDataset:
    """Open a dataset's shards; checks that every file of the manifest is there at its size.

    Args:
        path: folder of the shards, or of the manifest of shards that lie elsewhere (`published`),
            or s3://bucket/prefix of them.

    Raises:
        DataError: no manifest, or a file is missing or has another size.
    """
    folder = Place(path)
    try:
        manifest = folder.read(MANIFEST)
    except OSError as error:
        raise DataError(
            f"no shards in {path} ({MANIFEST} is missing): run the prepare stage"
        ) from error
    place = published(folder)
    dataset = ShardedDataset(Path(path), manifest, place)
    found = place.sizes()
    for file in (*dataset.files, *dataset.indices):
        name = file["path"]
        if name not in found:
            raise corrupt(place / name, "the file is missing")
        if found[name] != file["bytes"]:
            raise corrupt(place / name, f"{found[name]} bytes, expected {file['bytes']}")
    return dataset


def verify_shards(path: str | Path) -> ShardedDataset:
    """`open_shards`, and compare the sha256 of every file with the manifest.

    Raises:
        DataError: a file is missing or its content differs.
    """
    dataset = open_shards(path)
    for file in (*dataset.files, *dataset.indices):
        digest = dataset.place.sha256(file["path"])
        if digest != file["sha256"]:
            shard = dataset.place / file["path"]
            raise corrupt(shard, f"sha256 {digest}, expected {file['sha256']}")
    return dataset
