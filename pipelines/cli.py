"""The `segcore` command. Heavy imports stay inside the commands, so that --help is instant."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipelines import labels, serve, team
from pipelines.console import TrackingUri, errors, load_params, new_table, registry_table, show
from segcore.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from pipelines.params import Params

SHOWN_FAILURES = 20
EXPORTED = Path("outputs/exported")
FORMATS = {  # of predict, each with the extra files that it needs
    "mask": (),
    "probabilities": ("probabilities",),
    "coco": ("coco",),
    "geojson": ("contours",),
}

app = typer.Typer(
    name="segcore",
    help="Image segmentation: plan, predict, serve, export, doubt labels, list what there is.",
    epilog="The pipeline itself runs by `make repro` or `dvc repro`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)
for command in (labels.doctor, labels.budget, serve.serve, team.trace, team.history, team.sync):
    app.command()(command)


@app.command()
def predict(
    images: Annotated[
        str | None,
        typer.Argument(help="Folder, quoted glob, .txt list, image, folder of shards, or s3://"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="models:/NAME@champion, models:/NAME/3, or the folder or s3:// of a package"
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder, or s3://, of masks/, overlays/, manifest.parquet")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Predict nothing; check a folder against its manifest"),
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Also write tinted images")
    ] = False,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="mask, probabilities, coco, geojson, with commas; masks are always written",
        ),
    ] = "mask",
    contours: Annotated[bool, typer.Option("--contours", help="As --format geojson")] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also write how sure each pixel's class is, as PNG")
    ] = False,
    tta: Annotated[
        str | None,
        typer.Option(help="flip, scale or flip,scale: mean over mirrored and resized pictures"),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score of objects that are kept")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images that run together; default: params.yaml")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="torch; or onnxruntime, openvino: the exported model, on the CPU"),
    ] = "torch",
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a class mask for every image; run again, it does only what is missing.

    Exit code 0, 1 on an error, 3 when some images failed: the manifest says which and why. With
    --verify OUT, 3 when something there is not as its manifest says.
    """
    with errors():
        changes: dict[str, Any] = {}
        if batch_size is not None:
            changes["predict.batch_size"] = batch_size
        if min_score is not None:
            changes["predict.min_score"] = min_score
        extras = _extras(formats, {"contours": contours, "confidence": confidence})
        if extras:
            changes["predict.extras"] = extras
        if tta is not None:
            changes["predict.tta"] = [way.strip() for way in tta.split(",")]
        params = load_params(tracking_uri).override(changes)
        if verify is not None:
            _verify(params, verify)
        if images is None or model is None or out is None:
            raise OptionError("give IMAGES, --model and --out, or --verify OUT alone")
        from pipelines.prediction.run import predict as run  # after the params: it imports torch

        summary = run(params, images=images, model=model, out=out, overlays=overlays, engine=engine)
        typer.echo(str(summary))
        _say_rows([(row.path, row.reason) for row in summary.failed], "red")
        raise typer.Exit(summary.exit_code)


def _extras(formats: str, flags: dict[str, bool]) -> list[str]:
    """Extra files of a prediction that these options ask for."""
    asked = [name for name, flag in flags.items() if flag]
    for name in (part.strip() for part in formats.split(",")):
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
        asked += [extra for extra in FORMATS[name] if extra not in asked]
    return asked


def _verify(params: "Params", out: Path) -> NoReturn:
    from pipelines.prediction.verify import verify

    found = verify(params, out)
    _say_rows(found.faults, "red")
    _say_rows(found.open, "yellow")
    typer.echo(str(found))
    raise typer.Exit(found.exit_code)


def _say_rows(rows: Sequence[tuple[str, str]], color: str) -> None:
    """(what, reason) a line on stderr, the first of them."""
    for what, reason in rows[:SHOWN_FAILURES]:
        typer.secho(f"  {what}: {reason}", fg=color, err=True)
    if len(rows) > SHOWN_FAILURES:
        more = len(rows) - SHOWN_FAILURES
        typer.secho(f"  and {more} more: see the manifest", fg=color, err=True)


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(help="models:/NAME@champion, models:/NAME/3, or the folder of a package"),
    ],
    to: Annotated[str, typer.Option(help="onnx, torch-export or openvino")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file; default: outputs/exported/ARCHITECTURE.SUFFIX")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a semantic model as a file for other runtimes, and check it beside torch.

    The file takes uint8 images [N, C, H, W] of any size from 32 on, normalises them itself, and
    returns logits; classes and palette are in its metadata.
    """
    with errors():
        params = load_params(tracking_uri)
        from pipelines.prediction.located import locate
        from segcore.export import export_package
        from segcore.package import read_spec

        package, _ = locate(params, model)
        file, agreement = export_package(
            package, out or EXPORTED / read_spec(package).architecture.replace(":", "-"), to=to
        )
        typer.echo(f"{file}: {agreement}")


@app.command()
def plan(
    folder: Annotated[Path, typer.Argument(help="Your folder of images/ and masks/")],
) -> None:
    """Say how a model would be trained on a folder, and why; trains nothing.

    The settings follow from the pictures, this machine and the minutes. What params.yaml sets
    wins. The first time, a few training steps are timed.
    """
    with errors():
        params = load_params()
        from pipelines.preview import plan_folder

        plan_folder(params, folder)


@app.command()
def models(
    task: Annotated[str | None, typer.Option(help="semantic, instance, ...; default: all")] = None,
) -> None:
    """List the architectures with paper, year and parameters (at 21 classes)."""
    with errors():
        from segcore.models import list_models, model_card

        table = new_table("model", "system", "year", "parameters", "paper")
        for name in list_models(task):
            card = model_card(name)
            table.add_row(name, card.title, str(card.year), f"{card.parameters:,}", card.paper)
        show(table)


@app.command()
def losses() -> None:
    """List the losses."""
    with errors():
        from segcore.losses import LOSSES

        show(registry_table("loss", LOSSES))


@app.command()
def datasets() -> None:
    """List the datasets."""
    with errors():
        from segcore.datasets import DATASETS

        show(registry_table("dataset", DATASETS))


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only list")] = False,
) -> None:
    """List what interrupted runs, caches and downloads left in cluster.storage; --yes removes it.

    What a running process uses stays, and so do records that MLflow has not received yet.
    """
    with errors():
        from pipelines.clean import amount, duration, leftovers
        from pipelines.storage import scratch

        storage = scratch(load_params().cluster.storage)
        found = leftovers(storage)
        table = new_table("path", "size", "age", "what it is", "")
        for entry in found:
            fate = f"kept: {entry.kept}" if entry.kept else "removed" if yes else ""
            name = str(entry.path.relative_to(storage))
            table.add_row(name, amount(entry.size), duration(entry.age_s), entry.what, fate)
        going = [entry for entry in found if not entry.kept]
        for entry in going if yes else ():
            entry.remove()
        if found:
            show(table)
        total = amount(sum(entry.size for entry in going))
        end = "removed" if yes else "could go: segcore clean --yes removes it"
        typer.echo(f"{storage}: {total} {end}" if going else f"{storage}: nothing to remove")


if __name__ == "__main__":
    app()
