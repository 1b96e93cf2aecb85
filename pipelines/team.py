"""Commands about what was made before: where a mask came from, who moved an alias, what is unsent.

Heavy imports stay inside them, so that --help is instant.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import TrackingUri, errors, load_params, new_table, show


def trace(
    mask: Annotated[Path, typer.Argument(help="A PNG that predict wrote")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Say what made a mask: row, model version, run, plan, shards, archive, commit.

    From the facts in the PNG and the manifest beside it. Each link is checked where it still can
    be; exit code 3 when one is contradicted.
    """
    with errors():
        params = load_params(tracking_uri)
        from pipelines.trace import CONTRADICTED, MARKS
        from pipelines.trace import trace as walk

        links = walk(params, mask)
        table = new_table("link", "what it is", "", "checked")
        for link in links:
            table.add_row(link.name, link.value, MARKS[link.state], link.note)
        show(table)
        raise typer.Exit(3 if any(link.state == CONTRADICTED for link in links) else 0)


def history(
    name: Annotated[str, typer.Argument(help="Registered model, segcore-NAME or its dataset NAME")],
    restore: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Make a past champion champion again")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """List every move of an alias of a registered model, with its evidence."""
    with errors():
        params = load_params(tracking_uri)
        from pipelines.tracking.registry import Registry

        registry = Registry(params, existing=True)
        name = registry.full_name(name)
        if restore is not None:
            version = registry.restore(name, restore)
            typer.echo(f"champion of {name} is version {version.version} again")
        moves = registry.history(name).moves()
        table = new_table("", "when", "alias", "version", "figures", "who", "run", "commit", "why")
        for move in moves:
            table.add_row(*move.cells())
        if moves:
            show(table)
        else:
            typer.echo(f"{name}: no move of an alias is recorded")
        for alias, last in {move.alias: move for move in moves}.items():
            now = registry.get(name, alias)
            if now is None or now.version != last.version:
                where = f"at version {now.version}" if now else "gone"
                typer.secho(
                    f"{alias} is {where}: it was moved by other means than these",
                    fg="yellow",
                    err=True,
                )


def sync(
    tracking_uri: TrackingUri = None,
) -> None:
    """Send MLflow what runs could not deliver while its server was away; exit code 3 if it is."""
    with errors():
        params = load_params(tracking_uri)
        from pipelines.tracking.sync import sync as send

        done = send(params)
        for run_id in done.runs:
            typer.echo(f"run {run_id} is complete in MLflow")
        for run_id, count in done.left.items():
            typer.secho(f"run {run_id}: {count} records are left", fg="yellow", err=True)
        if not done.runs and not done.left:
            typer.echo("nothing waits to be sent")
        raise typer.Exit(3 if done.left else 0)
