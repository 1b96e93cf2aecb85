"""Stage prepare: the raw dataset validated and written as shards; `--check` only validates."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import stage
from pipelines.params import Params
from pipelines.sources import (
    create_dataset,
    raw_folder,
    shards_folder,
    shards_place,
    show_progress,
)

if TYPE_CHECKING:
    from segcore.data.prepare import Validation
    from segcore.data.sample import DatasetInfo

SHOWN = 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.prepare", description=__doc__)
    parser.add_argument("--check", action="store_true", help="validate, write no shards")
    arguments = parser.parse_args()
    prepare(Params.load(), check_only=arguments.check)


def prepare(params: Params, *, check_only: bool = False) -> None:
    """Validate; say what is wrong; write shards and `rejected.csv` unless it is too much.

    Raises:
        DataError: more samples are rejected than `data.max_rejected`, or writing failed.
    """
    from segcore.data.atomic import write_file
    from segcore.data.few_labels import hide_labels
    from segcore.data.prepare import REJECTED, validate, write, write_rejected
    from segcore.datasets.origin import read_origin
    from segcore.errors import DataError

    dataset, path = create_dataset(params), shards_folder(params)
    check_classes(params, dataset.info())
    with show_progress() as progress:
        validation = validate(dataset, size=params.data.size, progress=progress)
    show(validation, path / REJECTED)
    try:
        validation.check(params.data.max_rejected)
    except DataError:
        if not check_only:
            write_rejected(validation, path)
        raise
    finally:
        if check_only:
            write_file(path / REJECTED, validation.csv())
    validation = hide_labels(
        validation,
        fraction=params.data.labelled_fraction,
        per_class=params.data.labelled_per_class,
        seed=params.data.labelled_seed,
    )
    if not check_only:
        with show_progress() as progress:
            write(
                validation,
                path,
                image_encoding=params.data.image_encoding,
                rows_per_shard=params.data.rows_per_shard,
                progress=progress,
                origin=read_origin(raw_folder(params)),
                root=shards_place(params),
            )
    print(f"prepare: {summary(validation)}{'' if check_only else f' in {path}'}")


def check_classes(params: Params, info: "DatasetInfo") -> None:
    """Refuse class names that are not the dataset's.

    Raises:
        DataError: data.classes is set and differs from what the dataset has.
    """
    from segcore.errors import DataError

    if params.data.classes is not None and params.data.classes != info.classes:
        raise DataError(
            f"data.classes has {len(params.data.classes)} names, {info.name} has its own "
            f"{info.num_classes}: {', '.join(info.classes)}. Set data.classes to null"
        )


def summary(validation: "Validation") -> str:
    """One line: samples a split, and how many are rejected."""
    from segcore.data.sample import SPLITS

    found = [sample.split for sample in validation.samples]
    counts = ", ".join(f"{found.count(split)} {split}" for split in SPLITS if split in found)
    return f"{counts or 'no samples'}; {validation.rejected} rejected"


def show(validation: "Validation", table: Path) -> None:
    """Print the faults: a table on a terminal, else a line each."""
    import sys

    faults = validation.faults
    if not faults:
        return
    rows = [(f.severity, f.file, f.fault, f.value, f.fix) for f in faults[:SHOWN]]
    if sys.stdout.isatty():
        show_table(rows)
    else:
        for severity, file, fault, value, fix in rows:
            print(f"{severity}: {file}: {fault} ({value}): {fix}")
    rest = f"; {len(faults) - SHOWN} more there" if len(faults) > SHOWN else ""
    print(f"{len(faults)} faults, all in {table}{rest}", flush=True)


def show_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of (severity, file, fault, value, fix) as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("severity", "file", "fault", "value", "fix", title="Faults of the data")
    for severity, *cells in rows:
        color = "red" if severity == "error" else "yellow"
        table.add_row(Text(severity, style=color), *(Text(c, overflow="fold") for c in cells))
    Console().print(table)


if __name__ == "__main__":
    stage.run(main)
