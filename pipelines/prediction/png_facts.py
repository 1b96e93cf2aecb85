"""Facts inside a mask: a text chunk that says what the PNG was made of, and by what.

A mask that lost its manifest can still be traced by it. The pixels stay as they are.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

KEY = "segcore"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = 33  # signature, and the chunk IHDR that has to come first
MOST_BYTES = 1 << 16


def is_png(data: bytes) -> bool:
    """Whether these are the bytes of a PNG."""
    return data.startswith(SIGNATURE) and len(data) > HEADER_END


def embed(png: bytes, facts: Mapping[str, Any]) -> bytes:
    """A PNG with a chunk tEXt of `facts` as ASCII JSON; equal facts give equal bytes."""
    text = json.dumps(dict(facts), sort_keys=True, separators=(",", ":")).encode("ascii")
    content = b"tEXt" + KEY.encode("ascii") + b"\0" + text
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:HEADER_END] + chunk + png[HEADER_END:]


def read(path: Path) -> dict[str, Any] | None:
    """The facts in a PNG; None where it has none, is none, or cannot be read.

    Only chunks before the pixels are looked at, and none is read that is longer than 64 kB.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                return None
            return _find(file)
    except (OSError, ValueError, struct.error):
        return None


def _find(file: IO[bytes]) -> dict[str, Any] | None:
    start = KEY.encode("ascii") + b"\0"
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND"):
            return None
        if kind != b"tEXt" or length > MOST_BYTES:
            file.seek(length + 4, 1)
            continue
        content, (checksum,) = file.read(length), struct.unpack(">I", file.read(4))
        if content.startswith(start) and zlib.crc32(kind + content) == checksum:
            facts = json.loads(content[len(start) :])
            return facts if isinstance(facts, dict) else None
    return None
