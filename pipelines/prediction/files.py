"""Files of a prediction: encoded in memory, written by rename, swept up after a kill."""

import hashlib
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from pipelines.mirror import Mirror
from pipelines.prediction.manifest import FILE
from segcore.data.atomic import disk_errors

PNG_LEVEL = 1  # class maps shrink to little at any level, at 6 in twice the time
PART = re.compile(r"\..+\.\d+\.part(\.\w+)?")


def encode(content: Image.Image | bytes, name: str) -> bytes:
    """The bytes of a file of this name."""
    if isinstance(content, bytes):
        return content
    buffer = io.BytesIO()
    kind = Image.registered_extensions()[Path(name).suffix]
    content.save(buffer, kind, quality=90, compress_level=PNG_LEVEL)
    return buffer.getvalue()


def save(content: bytes, name: str, out: Mirror) -> None:
    """Write a file that is whole or not there; not synced, which would cost more than it."""
    if out.place is not None:
        out.place.write(name, content)
        return
    path = out.folder / name
    part = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def sweep(out: Path, folders: Iterable[str]) -> None:
    """Remove what killed processes left in `out`, of the manifest, and in folders below it."""
    for file in out.glob(f".{FILE}.*.partial"):
        file.unlink(missing_ok=True)
    for folder in folders:
        for file in (out / folder).rglob(".*.part*"):
            if PART.fullmatch(file.name):
                file.unlink(missing_ok=True)


def sha256_of(name: str, out: Mirror) -> str:
    """Hex digest of a file of predictions; "none" where it cannot be read."""
    if out.place is None:
        return sha256_file(out.folder / name)
    try:
        return out.place.sha256(name)
    except OSError:
        return "none"


def sha256_file(path: Path) -> str:
    """Hex digest of a file; "none" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "none"
