"""Per-image records of versions that were scored before, kept as Parquet files.

A file is named by all that its figures follow from: the package, the test images, the settings of
inference and the code that runs it. One that is damaged or of something else is as good as none.
"""

import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.params import EvaluateParams
from pipelines.storage import code_version
from segcore.data.atomic import write_file

FORMAT = 1  # another number where what is counted, or how, changes in a kind's `record`
FOLDER = "evaluations"
CODE = ("data", "encoders", "inference", "metrics", "models", "package.py", "tasks")
NO_EFFECT = {"batch_size", "promote"}


def stored_file(
    storage: Path, package_digest: str, dataset_digest: str, settings: EvaluateParams, device: str
) -> Path:
    """Where the records of a package on the test images are kept.

    Args:
        storage: folder of the runs' state.
        package_digest: of the model.
        dataset_digest: of the shards.
        settings: of the evaluation; batch size and the rule of promotion change no record.
        device: that the model runs on.
    """
    facts = {
        "format": FORMAT,
        "package": package_digest,
        "shards": dataset_digest,
        "settings": settings.model_dump(mode="json", exclude=NO_EFFECT),
        "code": code_version(*CODE),
        "device": device,
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return storage / FOLDER / f"{key}.parquet"


def save(file: Path, records: pa.Table) -> None:
    """Keep records of images, "id" first; the file is whole or not there."""
    buffer = io.BytesIO()
    pq.write_table(
        records.replace_schema_metadata({"key": file.stem}),
        buffer,
        compression="zstd",
        write_page_checksum=True,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, buffer.getvalue())


def load(file: Path, ids: list[str], schema: pa.Schema) -> pa.Table | None:
    """The records of just these images; None if the file does not hold them."""
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        if (table.schema.metadata or {}).get(b"key") != file.stem.encode():
            return None
        if table.column("id").to_pylist() != ids:
            return None
        return table.replace_schema_metadata(None).cast(schema)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None
