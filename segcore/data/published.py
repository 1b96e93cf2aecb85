"""Shards that lie elsewhere: a folder of their manifest alone, which says where.

A dataset in a place is never changed: its folder there is named by the digest of its manifest,
which is written last.
"""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segcore.data.place import Place
from segcore.data.shard_format import MANIFEST
from segcore.errors import DataError, OptionError

POINTER = "place.json"
UPLOADS = 8
MAX_POINTER = 10_000  # bytes


def publish(folder: Path, root: Place) -> Place:
    """Move a dataset from a folder to a place; its manifest stays, with a file that says where.

    Args:
        folder: as `write_shards` builds it, complete.
        root: below which datasets lie, each under its digest.

    Raises:
        DataError: the store does not answer or refuses; run again, it goes on.
    """
    manifest = (folder / MANIFEST).read_bytes()
    place = root / hashlib.sha256(manifest).hexdigest()[:16]
    content = json.loads(manifest)
    files = {file["path"]: file["bytes"] for file in (*content["files"], *content["indices"])}
    there = place.sizes()
    missing = [name for name, size in files.items() if there.get(name) != size]
    with ThreadPoolExecutor(UPLOADS) as pool:
        for future in [pool.submit(place.upload, folder / name, name) for name in missing]:
            future.result()
    place.write(MANIFEST, manifest)
    (folder / POINTER).write_text(json.dumps({"address": place.address}) + "\n")
    for name in files:
        (folder / name).unlink()
    for split in {name.partition("/")[0] for name in files if "/" in name}:
        shutil.rmtree(folder / split)
    return place


def published(folder: Place) -> Place:
    """Where the files of the manifest in `folder` are: elsewhere if a pointer says so.

    Raises:
        DataError: the pointer cannot be read, or the dataset is no longer there.
    """
    try:
        address = json.loads(folder.read(POINTER, most=MAX_POINTER))["address"]
        place = Place(address)
    except FileNotFoundError:
        return folder
    except (ValueError, KeyError, TypeError, OptionError) as error:
        raise DataError(
            f"{folder / POINTER} does not say where the shards are: run the prepare stage again"
        ) from error
    if not place.has(MANIFEST):
        raise DataError(
            f"the shards of {folder} are no longer in {place}: run the prepare stage again "
            "(dvc repro --force --single-item prepare), or bring them back"
        )
    return place
