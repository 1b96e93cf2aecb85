"""`cluster.num_workers` as a range: training goes on with fewer workers and grows again."""

from typing import Self

from pydantic import Field, model_validator

from pipelines.params.section import Section
from segcore.errors import OptionError


class Workers(Section):
    """Between how many workers training may run, as nodes come and go."""

    min: int = Field(ge=1, description="with fewer, training waits for nodes")
    max: int = Field(ge=1, description="of workers; more nodes stay idle")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: exchange them")
        return self

    def sizes(self, batch_size: int) -> tuple[int, ...]:
        """The numbers of workers that share a batch evenly, smallest first.

        Args:
            batch_size: images of a batch over all workers; it stays when workers come and go.

        Raises:
            OptionError: none does.
        """
        fitting = tuple(n for n in range(self.min, self.max + 1) if batch_size % n == 0)
        if not fitting:
            raise OptionError(
                f"train.batch_size {batch_size} cannot be shared out evenly among any of "
                f"cluster.num_workers {self.min} to {self.max}: take a batch size that is a "
                f"multiple of {self.min}"
            )
        return fitting
