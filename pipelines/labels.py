"""Commands about labels: which of them are doubtful, and what more of them would bring.

Heavy imports stay inside them, so that --help is instant.
"""

from typing import Annotated

import typer

from pipelines.console import errors, load_params, new_table, show

SHOWN_ROWS = 10


def doctor(
    folds: Annotated[
        int, typer.Option(min=2, help="Models; each judges the pictures that it has not seen")
    ] = 3,
    minutes: Annotated[
        float | None,
        typer.Option(help="Of training, shared by the models; default: as the stage train"),
    ] = None,
    pages: Annotated[
        int, typer.Option("--pictures", min=0, help="Pictures on the page; the table has all")
    ] = 60,
) -> None:
    """Rank the training pictures whose labels a model contradicts most surely.

    Each part of the training split is judged by a model that was trained on the others, by the
    settings of params.yaml and the plan: run it after `dvc repro` or its stages up to plan. Run
    again after an interruption, it goes on. Page and table are in outputs/doctor.
    """
    with errors():
        load_params()
        from pipelines.doctor import DOCTOR
        from pipelines.doctor import doctor as run
        from pipelines.evaluation.suspects import PAGE, lines

        found, classes = run(folds=folds, minutes=minutes, shown=pages)
        table = new_table("place", "picture", "label", "model says", "pixels", "sure", "score")
        for row in lines(found[:SHOWN_ROWS], classes):
            sure, score = f"{row['confidence']:.2f}", f"{row['score']:.2f}"
            names = (str(row["id"]), str(row["label"]), str(row["predicted"]))
            table.add_row(str(row["place"]), *names, str(row["area"]), sure, score)
        if found:
            show(table)
        typer.echo(f"doctor: {len(found)} pictures with a contradicted region: {DOCTOR / PAGE}")
