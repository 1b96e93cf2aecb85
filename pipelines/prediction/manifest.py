"""The manifest of predictions: one row per input, from mask back to model and data."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.data.atomic import write_file

FILE = "manifest.parquet"
DEFAULT_PRECISION = "fp32"  # of manifests that do not say
BEFORE = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("mask_path", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
# Between them stand the columns of the kind of task (`Kind.row_columns`).
AFTER = pa.schema(
    [
        ("seconds", pa.float64()),
        ("model_digest", pa.string()),
        ("model_version", pa.string()),
        ("dataset_digest", pa.string()),
        ("crf", pa.string()),
        ("precision", pa.string()),
        ("min_score", pa.float64()),
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
        facts: of the prediction, by column of its kind of task, as Arrow has them.
        seconds: time spent on it, from reading to writing.
        model_digest: of the model package.
        model_version: models:/name/version, or the package's folder.
        dataset_digest: of the shards that the model was trained on.
        crf: options of the dense CRF after the model, as JSON; "" without one.
        precision: that the model ran at: fp32, bf16 or fp16.
        min_score: least score of an object that was asked for; None for the model's own.
    """

    path: str
    status: str
    model_digest: str
    model_version: str
    dataset_digest: str
    crf: str = ""
    precision: str = DEFAULT_PRECISION
    min_score: float | None = None
    sha256: str = ""
    reason: str = ""
    mask_path: str = ""
    height: int = 0
    width: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def class_shares(self) -> dict[str, float]:
        """Class name -> share of the pixels, where the kind of task says it."""
        return dict(self.facts.get("class_shares", ()))


def read(folder: Path) -> dict[str, Row]:
    """The rows of a folder of predictions by input path; none if it has no readable manifest."""
    try:
        file = pq.read_schema(folder / FILE)
        own = [column for column in file if column.name not in {*BEFORE.names, *AFTER.names}]
        schema = pa.schema([*BEFORE, *own, *AFTER])
        records = pq.read_table(folder / FILE, schema=schema).to_pylist()
    except (OSError, pa.ArrowException):
        return {}
    rows = (_row(record, [column.name for column in own]) for record in records)
    return {row.path: row for row in rows}


def write(folder: Path, rows: Iterable[Row], columns: Iterable[tuple[str, pa.DataType]]) -> None:
    """Replace the manifest of a folder, rows sorted by path.

    Args:
        columns: those of the kind of task; a row without them has empty lists and nulls there.
    """
    own = pa.schema(columns)
    empty: dict[str, Any] = {
        field.name: [] if pa.types.is_nested(field.type) else None for field in own
    }
    records = [record(row, empty) for row in sorted(rows, key=lambda row: row.path)]
    schema = pa.schema([*BEFORE, *own, *AFTER])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), buffer, compression="zstd")
    write_file(folder / FILE, buffer.getvalue())


def record(row: Row, empty: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a flat record; `empty` has the columns of the kind of task."""
    common = {key: value for key, value in vars(row).items() if key != "facts"}
    return {**common, **empty, **row.facts}


def _row(record: dict[str, Any], own: list[str]) -> Row:
    facts = {name: record.pop(name) for name in own}
    if record["status"] != "ok":
        facts = {}
    return Row(**{**record, "precision": record["precision"] or DEFAULT_PRECISION, "facts": facts})
