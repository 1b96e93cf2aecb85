"""Commands about labels: which of them are doubtful, and what more of them would bring.

Heavy imports stay inside them, so that --help is instant.
"""

from typing import Annotated

import typer

from pipelines.console import errors, load_params, new_table, show
from segcore.errors import OptionError

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


def budget(
    fractions: Annotated[
        str, typer.Option(help="Shares of the training masks, with commas between")
    ] = "0.05,0.1,0.25,0.5,1",
    rest: Annotated[
        bool,
        typer.Option("--rest/--no-rest", help="Train also with the pictures left without"),
    ] = True,
    minutes: Annotated[
        float | None,
        typer.Option(help="Of training, shared by the models; default: each as the stage train"),
    ] = None,
    more: Annotated[int, typer.Option(min=1, help="Masks of which the answer speaks")] = 50,
) -> None:
    """Say what more masks would bring: train on shares of them, and draw the curve.

    By the settings of params.yaml and the plan; run it after `dvc repro` or its stages up to plan.
    Run again after an interruption, it goes on. Page, picture and table are in outputs/budget.
    """
    with errors():
        shares = _numbers(fractions)
        load_params()
        from pipelines.budget import BUDGET
        from pipelines.budget import budget as run
        from pipelines.evaluation.budget_page import PAGE

        answer = run(fractions=shares, with_rest=rest, minutes=minutes, more=more)
        table = new_table("method", "masks", f"test {answer.name}", "interval")
        for line in answer.lines:
            for point in line.points:
                low, high = point.interval(answer.confidence)
                interval = f"{low:.4f} to {high:.4f}"
                table.add_row(point.method, str(point.labels), f"{point.figure:.4f}", interval)
        show(table)
        for sentence in answer.sentences():
            typer.echo(sentence)
        typer.echo(f"budget: {BUDGET / PAGE}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise OptionError(f"--fractions is {text!r}: give numbers such as 0.1,0.5,1") from error
