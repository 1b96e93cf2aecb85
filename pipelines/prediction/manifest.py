"""The manifest of predictions: one row per input, from mask back to model and data."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.prediction import journal
from segcore.data.atomic import new_file

FILE = "manifest.parquet"
ROWS = 4096  # that are held at once
DEFAULT_PRECISION = "fp32"  # of manifests that do not say
TORCH = "torch"  # likewise
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
# What a result depends on beside its input, and where the model came from.
MADE_BY = (
    "model_digest", "model_version", "dataset_digest", "run_id", "commit", "crf", "precision",
    "min_score", "engine", "tta",
)  # fmt: skip
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
        ("run_id", pa.string()),
        ("commit", pa.string()),
        ("files", pa.map_(pa.string(), pa.string())),
        ("channel_means", pa.list_(pa.float64())),
        ("channel_stds", pa.list_(pa.float64())),
        ("engine", pa.string()),
        ("tta", pa.string()),
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
        run_id: of the MLflow run that trained the model; "" where that is not known.
        commit: of the code that trained it, likewise.
        files: sha256 of each file written for it, by its path relative to the manifest.
        channel_means, channel_stds: of the input's pixels, per channel, in 0..1.
        engine: what ran the model: torch, onnxruntime or openvino.
        tta: test-time augmentation, with commas; "" for none.
    """

    path: str
    status: str
    model_digest: str
    model_version: str
    dataset_digest: str
    crf: str = ""
    precision: str = DEFAULT_PRECISION
    min_score: float | None = None
    engine: str = TORCH
    tta: str = ""
    sha256: str = ""
    reason: str = ""
    mask_path: str = ""
    height: int = 0
    width: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    run_id: str = ""
    commit: str = ""
    files: dict[str, str] = field(default_factory=dict)
    channel_means: tuple[float, ...] = ()
    channel_stds: tuple[float, ...] = ()

    @property
    def class_shares(self) -> dict[str, float]:
        """Class name -> share of the pixels, where the kind of task says it."""
        return dict(self.facts.get("class_shares", ()))


def read(folder: Path) -> dict[str, Row]:
    """The rows of a folder of predictions by input path, those of an unfinished job among them.

    Nothing of what cannot be read: it is made again.
    """
    return {row.path: row for row in stream(folder)}


def stream(folder: Path) -> Iterator[Row]:
    """What `read` reads, a few rows at a time; of two rows of an input, the later one counts."""
    yield from _finished(folder)
    yield from _unfinished(folder)


def _finished(folder: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(folder / FILE) as file:
            known = {*BEFORE.names, *AFTER.names}
            own = [column for column in file.schema_arrow if column.name not in known]
            schema = pa.schema([*BEFORE, *own, *AFTER])
            names = [column.name for column in own]
            for batch in file.iter_batches(ROWS):
                for record in _whole(batch, schema).to_pylist():
                    yield _row(record, names)
    except (OSError, pa.ArrowException):
        return


def _whole(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """The rows with nulls in the columns that an older manifest does not have."""
    there = set(batch.schema.names)
    columns = [
        batch.column(column.name).cast(column.type)
        if column.name in there
        else pa.nulls(len(batch), column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _unfinished(folder: Path) -> Iterator[Row]:
    for records, own in journal.read(folder):
        schema = pa.schema([*BEFORE, *own, *AFTER])
        maps = [column.name for column in schema if pa.types.is_map(column.type)]
        # JSON knows no tuples, and Arrow takes nothing else as the entry of a map.
        with suppress(pa.ArrowException, KeyError, TypeError):
            pairs = [
                {name: [tuple(pair) for pair in one[name]] for name in maps} for one in records
            ]
            whole = [{**one, **pair} for one, pair in zip(records, pairs, strict=True)]
            found = pa.Table.from_pylist(whole, schema=schema).to_pylist()
            yield from (_row(record, own.names) for record in found)


def write(folder: Path, rows: Iterable[Row], columns: Iterable[tuple[str, pa.DataType]]) -> None:
    """Replace the manifest of a folder.

    Args:
        rows: by path.
        columns: those of the kind of task; a row without them has empty lists and nulls there.
    """
    own = pa.schema(columns)
    empty: dict[str, Any] = {
        field.name: [] if pa.types.is_nested(field.type) else None for field in own
    }
    schema = pa.schema([*BEFORE, *own, *AFTER])
    rest = iter(rows)
    with (
        new_file(folder / FILE) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        while records := [record(row, empty) for row in islice(rest, ROWS)]:
            writer.write_table(pa.Table.from_pylist(records, schema=schema))


def record(row: Row, empty: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a flat record; `empty` has the columns of the kind of task."""
    common = {key: value for key, value in vars(row).items() if key != "facts"}
    return {**common, "files": sorted(row.files.items()), **empty, **row.facts}


def made_of(row: Row) -> dict[str, Any]:
    """What a mask itself says of how it was made (`png_facts`): no more than its row does."""
    facts = {
        "input": row.path,
        "input_sha256": row.sha256,
        **{name: getattr(row, name) for name in MADE_BY},
    }
    usual = ("engine", TORCH)  # which masks do not say
    return {
        key: value
        for key, value in facts.items()
        if value not in ("", None) and (key, value) != usual
    }


def _row(record: dict[str, Any], own: list[str]) -> Row:
    """Inverse of `record`; of an older manifest, whose last columns are null."""
    facts = {name: record.pop(name) for name in own}
    if record["status"] != "ok":
        facts = {}
    return Row(
        **{
            **record,
            "precision": record["precision"] or DEFAULT_PRECISION,
            "run_id": record["run_id"] or "",
            "commit": record["commit"] or "",
            "files": dict(record["files"] or ()),
            "channel_means": tuple(record["channel_means"] or ()),
            "channel_stds": tuple(record["channel_stds"] or ()),
            "engine": record["engine"] or TORCH,
            "tta": record["tta"] or "",
            "facts": facts,
        }
    )
