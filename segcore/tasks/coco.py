"""COCO's JSON of a whole job of predictions, written as rows come."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segcore.data.atomic import disk_errors


def image_entry(number: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """COCO's entry of an image, of a row of the manifest."""
    facts = {"file_name": entry["path"], "height": entry["height"], "width": entry["width"]}
    return {"id": number, **facts}


def write_document(path: Path, parts: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Write {key: [entries]} as JSON, entry by entry, by a temporary name.

    Args:
        path: of the file.
        parts: written in this order, so that one may be filled while another is written.

    Raises:
        DataError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        with partial.open("w", encoding="utf-8") as file:
            for index, (key, entries) in enumerate(parts.items()):
                file.write(("{" if index == 0 else ",\n") + json.dumps(key) + ": [\n")
                for place, entry in enumerate(entries):
                    file.write((",\n" if place else "") + _line(entry))
                file.write("\n]")
            file.write("}\n")
        partial.replace(path)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"))
