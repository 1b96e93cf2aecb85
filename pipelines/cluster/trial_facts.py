"""One trial of a search: its params, and what is told of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.params import Params

COMPLETED, PRUNED, FAILED = "completed", "pruned", "failed"
RECORDS = "records.parquet"


@dataclass(frozen=True)
class Trial:
    """A trial that ended.

    Args:
        id: of the search; trials are in its order.
        run_id: its run in MLflow.
        values: by dotted key; with pbt those that it ended with.
        epochs: that it trained.
        outcome: completed at its full length, pruned before, or failed.
        figures: of its last epoch, by metric; those of the objectives alone.
        why: it failed.
        took_over: whose weights and values it took over, in order; pbt alone.
        records: per-image records of the validation images, a Parquet file; None without.
    """

    id: str
    run_id: str
    values: dict[str, Any]
    epochs: int
    outcome: str
    figures: dict[str, float]
    why: str | None = None
    took_over: list[str] = field(default_factory=list)
    records: bytes | None = None

    def measured(self, metrics: list[str]) -> bool:
        """Whether it did not fail, and has each of these figures."""
        values = [self.figures.get(name, float("nan")) for name in metrics]
        return self.outcome != FAILED and all(value == value for value in values)


def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values by dotted key; choices travel as JSON, so that any value may be one."""
    return {
        key: json.loads(value) if isinstance(value, str) else value for key, value in config.items()
    }


def trial_params(params: Params, values: Mapping[str, Any]) -> Params:
    """Params of one trial: its values, and the length that `tune` gives it."""
    bounds = {"train.epochs": params.tune.epochs, "train.max_minutes": None, "train.refit": False}
    return params.override({**values, **bounds})
