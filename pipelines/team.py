"""Commands about what was made before: where a mask came from, who moved an alias, what is unsent.

Heavy imports stay inside them, so that --help is instant.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import errors, load_params, new_table, show


def trace(
    mask: Annotated[Path, typer.Argument(help="A PNG that predict wrote")],
    tracking_uri: Annotated[
        str | None,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store; default: params.yaml"),
    ] = None,
) -> None:
    """Say what made a mask: row, model version, run, plan, shards, archive, commit.

    From the facts in the PNG and the manifest beside it. Each link is checked where it still can
    be; exit code 3 when one is contradicted.
    """
    with errors():
        params = load_params().override({"tracking.uri": tracking_uri} if tracking_uri else {})
        from pipelines.prediction.trace import CONTRADICTED, MARKS
        from pipelines.prediction.trace import trace as walk

        links = walk(params, mask)
        table = new_table("link", "what it is", "", "checked")
        for link in links:
            table.add_row(link.name, link.value, MARKS[link.state], link.note)
        show(table)
        raise typer.Exit(3 if any(link.state == CONTRADICTED for link in links) else 0)
