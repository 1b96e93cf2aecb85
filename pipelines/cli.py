"""The `segcore` command. Heavy imports stay inside the commands, so that --help is instant."""

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

SHOWN_FAILURES = 20
PARAMS = "params.yaml"

app = typer.Typer(
    name="segcore",
    help="Image segmentation: plan, predict with trained models, list what can be trained.",
    epilog="The pipeline itself runs by `make repro` or `dvc repro`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


@app.command()
def predict(
    images: Annotated[
        str,
        typer.Argument(help="Folder, quoted glob, .txt list, image, folder of shards, or s3://"),
    ],
    model: Annotated[
        str,
        typer.Option(help="models:/NAME@champion, models:/NAME/3, or the folder of a package"),
    ],
    out: Annotated[Path, typer.Option(help="Folder of masks/, overlays/ and manifest.parquet")],
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Also write tinted images")
    ] = False,
    contours: Annotated[
        bool, typer.Option("--contours", help="Also write GeoJSON contours of objects")
    ] = False,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score of objects that are kept")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images that run together; default: params.yaml")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store; default: params.yaml"),
    ] = None,
) -> None:
    """Write a class mask for every image; run again, it does only what is missing.

    Exit code 0, 1 on an error, 3 when some images failed: the manifest says which and why.
    """
    with _errors():
        changes: dict[str, Any] = {}
        if batch_size is not None:
            changes["predict.batch_size"] = batch_size
        if min_score is not None:
            changes["predict.min_score"] = min_score
        if contours:
            changes["predict.extras"] = ["contours"]
        if tracking_uri is not None:
            changes["tracking.uri"] = tracking_uri
        params = _params().override(changes)
        from pipelines.prediction.run import predict as run  # after the params: it imports torch

        summary = run(params, images=images, model=model, out=out, overlays=overlays)
        typer.echo(str(summary))
        for row in summary.failed[:SHOWN_FAILURES]:
            typer.secho(f"  {row.path}: {row.reason}", fg="red", err=True)
        more = len(summary.failed) - SHOWN_FAILURES
        if more > 0:
            typer.secho(f"  and {more} more: see the manifest", fg="red", err=True)
        raise typer.Exit(summary.exit_code)


@app.command()
def plan(
    folder: Annotated[Path, typer.Argument(help="Your folder of images/ and masks/")],
) -> None:
    """Say how a model would be trained on a folder, and why; trains nothing.

    The settings follow from the pictures, this machine and the minutes. What params.yaml sets
    wins. The first time, a few training steps are timed.
    """
    with _errors():
        params = _params()
        from pipelines.preview import plan_folder

        plan_folder(params, folder)


@app.command()
def models(
    task: Annotated[str | None, typer.Option(help="semantic, instance, ...; default: all")] = None,
) -> None:
    """List the architectures with paper, year and parameters (at 21 classes)."""
    with _errors():
        from segcore.models import list_models, model_card

        table = _table("model", "system", "year", "parameters", "paper")
        for name in list_models(task):
            card = model_card(name)
            table.add_row(name, card.title, str(card.year), f"{card.parameters:,}", card.paper)
        _show(table)


@app.command()
def losses() -> None:
    """List the losses."""
    with _errors():
        from segcore.losses import LOSSES

        _show(_registry_table("loss", LOSSES))


@app.command()
def datasets() -> None:
    """List the datasets."""
    with _errors():
        from segcore.datasets import DATASETS

        _show(_registry_table("dataset", DATASETS))


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only list")] = False,
) -> None:
    """List what interrupted runs, caches and downloads left in cluster.storage; --yes removes it.

    What a running process uses stays, and so do records that MLflow has not received yet.
    """
    with _errors():
        from pipelines.clean import amount, duration, leftovers
        from pipelines.storage import absolute

        storage = absolute(_params().cluster.storage)
        found = leftovers(storage)
        table = _table("path", "size", "age", "what it is", "")
        for entry in found:
            fate = f"kept: {entry.kept}" if entry.kept else "removed" if yes else ""
            name = str(entry.path.relative_to(storage))
            table.add_row(name, amount(entry.size), duration(entry.age_s), entry.what, fate)
        going = [entry for entry in found if not entry.kept]
        for entry in going if yes else ():
            entry.remove()
        if found:
            _show(table)
        total = amount(sum(entry.size for entry in going))
        end = "removed" if yes else "could go: segcore clean --yes removes it"
        typer.echo(f"{storage}: {total} {end}" if going else f"{storage}: nothing to remove")


def _params() -> "Params":
    """params.yaml of the current folder, else of the checkout that this command belongs to."""
    from pipelines.params import Params

    own = Path(PARAMS)
    return Params.load(own if own.is_file() else Path(__file__).parents[1] / PARAMS)


def _registry_table(kind: str, registry: Any) -> "Table":
    """Names with the first line of what they stand for."""
    import importlib

    table = _table(kind, "what it is")
    for name, target in sorted(registry.items()):
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
        table.add_row(name, (target.__doc__ or "").strip().partition("\n")[0])
    return table


def _table(*columns: str) -> "Table":
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


def _show(table: "Table") -> None:
    from rich.console import Console

    # Into a pipe or file, lines are as long as they are.
    Console(width=None if os.isatty(1) else 200).print(table)


@contextmanager
def _errors() -> Iterator[None]:
    """A user's error is one message and exit code 1."""
    try:
        yield
    except SegcoreError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.secho("interrupted; run the same command again to go on", fg="yellow", err=True)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
