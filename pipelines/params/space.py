"""Distributions that `tune.space` draws the values of a key from."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.params.section import Section


class Around(Section):
    """Of a number that the plan decided, or the user: from value / factor to value * factor."""

    kind: Literal["around"]
    factor: float = Field(gt=1)

    def between(self, value: float) -> "Uniform":
        return Uniform(kind="loguniform", low=value / self.factor, high=value * self.factor)


class Choice(Section):
    kind: Literal["choice"]
    values: Annotated[list[Any], Field(min_length=1)]

    def ends(self) -> list[Any]:
        return list(self.values)


class Uniform(Section):
    kind: Literal["uniform", "loguniform"]
    low: float
    high: float

    def ends(self) -> list[Any]:
        return [self.low, self.high]


class RandInt(Section):
    kind: Literal["randint"]
    low: int
    high: int = Field(description="exclusive")

    def ends(self) -> list[Any]:
        return [self.low, self.high - 1]


Drawn = Choice | Uniform | RandInt
Distribution = Annotated[Around | Choice | Uniform | RandInt, Field(discriminator="kind")]
