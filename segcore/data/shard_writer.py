"""Write shards: in parallel, all or nothing, the same bytes for the same rows."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.data.atomic import disk_errors, new_folder
from segcore.data.place import Place
from segcore.data.pool import WorkerPool, check_stop
from segcore.data.published import publish
from segcore.data.sample import SPLITS
from segcore.data.shard_format import FORMAT, MANIFEST, ROW_GROUP, Row, ShardMeta, split_schema
from segcore.errors import OptionError

Item = TypeVar("Item")
Done = Callable[[int], None]


@dataclass(frozen=True)
class _Part(Generic[Item]):
    """One file to write; it can be sent to another process."""

    path: Path
    schema: bytes
    items: Sequence[Item]
    encode: Callable[[Item], Row]


def write_shards(
    path: Path,
    meta: ShardMeta,
    *,
    splits: Mapping[str, Sequence[Item]],
    encode: Callable[[Item], Row],
    rows_per_shard: int = 256,
    pool: WorkerPool | None = None,
    done: Done = lambda rows: None,
    indices: Mapping[str, bytes] | None = None,
    extra: Mapping[str, bytes] | None = None,
    root: Place | None = None,
) -> None:
    """Write a dataset's shards and their manifest in place of whatever is at `path`.

    The folder appears whole or not at all: it is built under a temporary name and renamed.

    Args:
        path: folder of the dataset.
        meta: what holds for all its shards.
        splits: split name -> what `encode` makes rows of, in order. Empty splits are left out.
        encode: makes one row; a picklable function if there is a pool.
        rows_per_shard: rows of one file.
        pool: processes that write files; None: this one.
        done: told after each file how many rows it has.
        indices: files made from the rows, by name; in the manifest, of no split.
        extra: further files of the folder, by name; not in the manifest.
        root: where the files go, under the dataset's digest; `path` then has the manifest and
            says where. None: everything is in `path`.

    Raises:
        OptionError: rows_per_shard is not positive, or a split has an unknown name.
        DataError: the disk is full or the place not writable; nothing is left behind.
    """
    if rows_per_shard < 1:
        raise OptionError(f"rows_per_shard is {rows_per_shard}: it must be at least 1")
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise OptionError(f"unknown split {unknown[0]!r}. Known: {', '.join(SPLITS)}")
    with new_folder(Path(path)) as folder:
        parts = _plan(folder, meta, splits, encode, rows_per_shard)
        entries = _write_parts(parts, pool, done)
        for name, data in {**(indices or {}), **(extra or {})}.items():
            (folder / name).write_bytes(data)
        manifest = {
            "format": FORMAT,
            "dataset": meta.to_json(),
            "splits": {split: len(splits[split]) for split in SPLITS if splits.get(split)},
            "files": entries,
            "indices": [_hashed(folder / name, folder) for name in sorted(indices or {})],
        }
        _write_manifest(folder, manifest)
        if root is not None:
            publish(folder, root)


def _plan(
    folder: Path,
    meta: ShardMeta,
    splits: Mapping[str, Sequence[Item]],
    encode: Callable[[Item], Row],
    rows_per_shard: int,
) -> list[_Part[Item]]:
    """The files to write, with their folders made."""
    parts = []
    for split in SPLITS:
        items = splits.get(split, ())
        schema = split_schema(meta, split, len(items)).serialize().to_pybytes()
        for number, start in enumerate(range(0, len(items), rows_per_shard)):
            (folder / split).mkdir(exist_ok=True)
            file = folder / split / f"part-{number:05d}.parquet"
            parts.append(_Part(file, schema, items[start : start + rows_per_shard], encode))
    return parts


def _write_parts(
    parts: Sequence[_Part[Item]], pool: WorkerPool | None, done: Done
) -> list[dict[str, Any]]:
    entries = []
    if pool is None:
        for part in parts:
            entries.append(_write_part(part))
            done(len(part.items))
        return entries
    futures = {pool.submit(_write_part, part): part for part in parts}
    try:
        for future in as_completed(futures):
            entries.append(future.result())
            done(len(futures[future].items))
    except BaseException:
        pool.stop()
        raise
    finally:
        for future in futures:
            future.cancel()
        wait(futures)  # until nobody writes into the folder that is about to go
    return sorted(entries, key=lambda entry: str(entry["path"]))


def _write_part(part: _Part[Any]) -> dict[str, Any]:
    schema = pa.ipc.read_schema(pa.py_buffer(part.schema))
    with (
        disk_errors(part.path.parent.parent),
        part.path.open("wb") as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        for start in range(0, len(part.items), ROW_GROUP):
            records = []
            for item in part.items[start : start + ROW_GROUP]:
                check_stop()
                records.append(part.encode(item).record())
            writer.write_table(pa.Table.from_pylist(records, schema), row_group_size=ROW_GROUP)
    return {**_hashed(part.path, part.path.parent.parent), "rows": len(part.items)}


def _hashed(file: Path, folder: Path) -> dict[str, Any]:
    """A file as the manifest lists it; synced to disk."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    path = file.relative_to(folder).as_posix()
    return {"path": path, "bytes": file.stat().st_size, "sha256": digest}


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    with (folder / MANIFEST).open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
