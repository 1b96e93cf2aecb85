"""Section tune: what is searched, by which rules, and what the trials are compared by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.params.section import PlannedSection
from pipelines.params.space import Choice, Distribution

MILLISECONDS = "milliseconds"
SEED = "train.seed"

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Objective:
    """A figure of the validation images, and which of its values are better."""

    metric: str
    mode: str

    @property
    def key(self) -> str:
        """Its name in the metrics of an epoch."""
        return f"val/{self.metric}"

    @property
    def sign(self) -> float:
        """With which more is better."""
        return 1.0 if self.mode == "max" else -1.0


def objectives(metric: str | Sequence[str], mode: str | Sequence[str]) -> tuple[Objective, ...]:
    """`tune.metric` and `tune.mode` as objectives, the first one first.

    Args:
        metric: one name, or several.
        mode: of all of them, or one for each.
    """
    metrics = [metric] if isinstance(metric, str) else list(metric)
    modes = [mode] * len(metrics) if isinstance(mode, str) else list(mode)
    return tuple(Objective(*pair) for pair in zip(metrics, modes, strict=True))


class TuneParams(PlannedSection):
    trials: int = Field(ge=0, description="0: no search")
    epochs: int = Field(ge=1, description="of the longest trial")
    grace_epochs: int = Field(
        ge=1, description="asha stops no trial before; pbt changes values every so many epochs"
    )
    concurrent: int = Field(ge=1, description="trials at once")
    workers: int = Field(ge=1, description="processes of one trial; more than one by Ray Train")
    gpus: float | None = Field(
        gt=0, le=1, description="of a process of a trial, a fraction too; null: an equal share"
    )
    seeds: int = Field(ge=1, description="trials of the same values, with seeds of their own")
    scheduler: Literal["asha", "pbt", "none"] = Field(
        description="asha: the poor are stopped; pbt: they take over weights and values"
    )
    search: Literal["optuna", "random"] = Field(description="how values are proposed")
    metric: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="a validation metric, or several; auto: the headline of the kind of task"
    )
    mode: Mode | list[Mode] = Field(description="of all metrics, or one for each")
    choose: dict[str, float] = Field(description="limits of metrics after the first")
    seed: int = Field(ge=0)
    space: dict[str, Distribution] = Field(description="dotted params key -> distribution")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        metrics = [self.metric] if isinstance(self.metric, str) else list(self.metric)
        if len(set(metrics)) < len(metrics):
            raise ValueError(f"metric has {metrics}: name each once")
        if isinstance(self.mode, list) and len(self.mode) != len(metrics):
            raise ValueError(
                f"mode has {len(self.mode)} entries for {len(metrics)} of metric: give one for "
                "each, or auto"
            )
        if metrics[0] == MILLISECONDS:
            raise ValueError(
                f"metric begins with {MILLISECONDS}, which does not change from epoch to epoch: "
                "name a figure of quality first"
            )
        for name in self.choose:
            if name not in metrics[1:]:
                raise ValueError(
                    f"choose limits {name}, which is no metric after the first "
                    f"({', '.join(metrics[1:]) or 'there is one metric only'}): add it to metric"
                )
        if self.scheduler == "pbt" and (self.workers != 1 or self.seeds != 1):
            raise ValueError(
                f"scheduler is pbt with {self.workers} workers and {self.seeds} seeds: the trials "
                "of a population are one process and one seed each; set both to 1"
            )
        return self

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What trials are compared by; once `auto` is decided."""
        return objectives(self.metric, self.mode)

    @property
    def compares(self) -> bool:
        """Whether trials are compared on single images: choices, or seeds."""
        choices = any(isinstance(entry, Choice) for entry in self.space.values())
        return choices or self.seeds > 1
