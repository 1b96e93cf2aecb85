"""The manifest of predictions: one row per input, from mask back to model and data."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.data.atomic import write_file

FILE = "manifest.parquet"
DEFAULT_PRECISION = "fp32"  # of manifests that do not say
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("mask_path", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("class_shares", pa.map_(pa.string(), pa.float64())),
        ("seconds", pa.float64()),
        ("model_digest", pa.string()),
        ("model_version", pa.string()),
        ("dataset_digest", pa.string()),
        ("crf", pa.string()),
        ("precision", pa.string()),
    ]
)


@dataclass(frozen=True)
class Row:
    """What became of one input.

    Args:
        path: of the input.
        sha256: of its bytes; "" where it could not be read.
        status: "ok", "error", or "skipped" for a file that is no image by its name.
        reason: of an error or a skip.
        mask_path: of the mask, relative to the manifest; "" without one.
        height, width: of the mask in pixels; 0 without one.
        class_shares: class name -> share of the pixels, of the classes that occur.
        seconds: time spent on it, from reading to writing.
        model_digest: of the model package.
        model_version: models:/name/version, or the package's folder.
        dataset_digest: of the shards that the model was trained on.
        crf: options of the dense CRF after the model, as JSON; "" without one.
        precision: that the model ran at: fp32, bf16 or fp16.
    """

    path: str
    status: str
    model_digest: str
    model_version: str
    dataset_digest: str
    crf: str = ""
    precision: str = DEFAULT_PRECISION
    sha256: str = ""
    reason: str = ""
    mask_path: str = ""
    height: int = 0
    width: int = 0
    class_shares: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def read(folder: Path) -> dict[str, Row]:
    """The rows of a folder of predictions by input path; none if it has no readable manifest."""
    try:
        records = pq.read_table(folder / FILE, schema=SCHEMA).to_pylist()
    except (OSError, pa.ArrowException):
        return {}
    rows = (_row(record) for record in records)
    return {row.path: row for row in rows}


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Replace the manifest of a folder, rows sorted by path."""
    ordered = sorted(rows, key=lambda row: row.path)
    records = [_record(row) for row in ordered]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), buffer, compression="zstd")
    write_file(folder / FILE, buffer.getvalue())


def _row(record: dict[str, Any]) -> Row:
    own = {
        "class_shares": dict(record["class_shares"]),
        "precision": record["precision"] or DEFAULT_PRECISION,
    }
    return Row(**{**record, **own})


def _record(row: Row) -> dict[str, Any]:
    return {**vars(row), "class_shares": sorted(row.class_shares.items())}
