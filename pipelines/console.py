"""What the commands of `segcore` share: params, tables, and errors as one message."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segcore.errors import SegcoreError

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.params import Params

PARAMS = "params.yaml"

TrackingUri = Annotated[
    str | None,
    typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store; default: params.yaml"),
]


def load_params(tracking_uri: str | None = None) -> "Params":
    """params.yaml of the current folder, else of the checkout that this command belongs to.

    Args:
        tracking_uri: in place of its own.
    """
    from pipelines.params import Params

    own = Path(PARAMS)
    params = Params.load(own if own.is_file() else Path(__file__).parents[1] / PARAMS)
    return params.override({"tracking.uri": tracking_uri} if tracking_uri else {})


def registry_table(kind: str, registry: Any) -> "Table":
    """Names with the first line of what they stand for."""
    import importlib

    table = new_table(kind, "what it is")
    for name, target in sorted(registry.items()):
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
        table.add_row(name, (target.__doc__ or "").strip().partition("\n")[0])
    return table


def new_table(*columns: str) -> "Table":
    """A table of text; the columns that hold figures are on the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        right = column in ("year", "parameters", "size", "age")
        table.add_column(
            column,
            style=None if index else "bold",
            justify="right" if right else "left",
            no_wrap=right or not index,
        )
    return table


def show(table: "Table") -> None:
    """Print a table."""
    from rich.console import Console

    # Into a pipe or file, lines are as long as they are.
    Console(width=None if os.isatty(1) else 200).print(table)


@contextmanager
def errors() -> Iterator[None]:
    """A user's error is one message and exit code 1."""
    try:
        yield
    except SegcoreError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.secho("interrupted; run the same command again to go on", fg="yellow", err=True)
        raise typer.Exit(130) from None
