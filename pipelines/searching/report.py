"""The page of a search: what was tried, what was taken and why, and what the trials say."""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.cluster.trial_facts import COMPLETED, FAILED, PRUNED, Trial
from pipelines.params import Params
from pipelines.params.tune import SEED
from pipelines.scoring import pages
from pipelines.searching import charts
from pipelines.searching.choose import Choice, front
from pipelines.searching.contest import CONFIDENCE, RESAMPLES, contests
from pipelines.searching.empty import TEMPLATES, write_page
from pipelines.searching.importance import FEWEST, importances
from pipelines.tracking.run import Run
from pipelines.training.build import find_kind

LOCAL_SERVER = "http://127.0.0.1:5000"  # of `make ui`
OUTCOMES = (COMPLETED, PRUNED, FAILED)


def write(
    page: Path,
    params: Params,
    dataset: Any,
    trials: Sequence[Trial],
    chosen: Choice,
    *,
    run_id: str,
    link: Callable[[str], str],
) -> None:
    """Write the page of a search.

    Args:
        page: the file.
        params: of the search.
        dataset: that was searched on.
        trials: in order.
        chosen: what training takes over.
        run_id: MLflow run of the search.
        link: address of a run by its id.
    """
    goals, space = params.tune.objectives, params.search_space()
    best = front(trials, goals)
    text = _render(
        "search.html.j2",
        dataset=dataset,
        params=params,
        settings=params.tune,
        goals=goals,
        keys=[*space, SEED] if params.tune.seeds > 1 else list(space),
        trials=trials,
        order=_order(trials, params),
        counts=Counter(trial.outcome for trial in trials),
        outcomes=OUTCOMES,
        chosen=chosen,
        best={trial.id for trial in best},
        parallel=_source(charts.parallel_png(trials, space, goals, chosen.trial)),
        pareto=[
            _source(charts.front_png(trials, (goals[0], other), best, chosen.trial))
            for other in goals[1:]
        ],
        importances=importances(trials, space, goals[0]),
        fewest=FEWEST,
        contests=contests(trials, params, dataset, find_kind(params, dataset)),
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        link=link,
        run_id=run_id,
    )
    write_page(page, text)


def links(run: Run) -> Callable[[str], str]:
    """Address of a run by its id: on the tracking server, or on that of `make ui`."""
    connection = run.connection
    uri = connection.uri.rstrip("/") if connection.uri.startswith("http") else LOCAL_SERVER
    return lambda run_id: f"{uri}/#/experiments/{connection.experiment_id}/runs/{run_id}"


def _order(trials: Sequence[Trial], params: Params) -> list[Trial]:
    """Those of full length first, by the first objective; then the others by their epochs."""
    goal = params.tune.objectives[0]

    def rank(trial: Trial) -> tuple[int, int, float]:
        value = trial.figures.get(goal.metric, float("nan"))
        score = goal.sign * value if value == value else float("-inf")
        return (OUTCOMES.index(trial.outcome), -trial.epochs, -score)

    return sorted(trials, key=rank)


def _render(template: str, **values: Any) -> str:
    environment = pages.environment(TEMPLATES)
    environment.filters["value"] = _value
    environment.filters["measure"] = _measure
    environment.globals["interval"] = charts.interval_svg
    return str(environment.get_template(template).render(**values))


def _value(value: Any) -> str:
    """A searched value as the table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _measure(value: Any) -> str:
    """A figure: shares to four places, milliseconds to one; n/a for one that is not there."""
    if not isinstance(value, (int, float)):
        return "n/a"
    return pages.figure(value, 4 if abs(value) < 10 else 1)


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
