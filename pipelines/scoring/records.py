"""Per-image records of a model's predictions on a split."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from segcore.data.rows import decode_labelled
from segcore.data.shards import ShardedDataset
from segcore.tasks import Kind
from segcore.tasks.kind import AnyPredictor


def record_schema(kind: Kind) -> pa.Schema:
    """Columns of a table of records: the image's id, then the kind's own."""
    return pa.schema([("id", pa.string()), *kind.record_columns])


def record(
    predictor: AnyPredictor,
    dataset: ShardedDataset,
    rows: Sequence[int],
    *,
    kind: Kind,
    batch_size: int,
    split: str = "test",
    advance: Callable[[int], None] = lambda count: None,
) -> pa.Table:
    """Records of labelled rows of a split; each image is predicted at its own size.

    Args:
        predictor: a model.
        dataset: of the images.
        rows: of the split.
        kind: what is predicted.
        batch_size: images at once.
        split: "test" or "val".
        advance: called with the number of images that were just done.
    """
    images, targets = dataset.split(split), kind.targets(dataset)
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        pairs = [decode_labelled(images, row, targets) for row in part]
        predictions = predictor([image for image, _ in pairs], batch_size)
        for (_, label), prediction in zip(pairs, predictions, strict=True):
            found.append(kind.record(prediction, label, dataset))
        advance(len(part))
    columns = [pa.array([one[name] for one in found], kinds) for name, kinds in kind.record_columns]
    ids = pa.array([images.ids[row] for row in rows], pa.string())
    return pa.Table.from_arrays([ids, *columns], schema=record_schema(kind))
