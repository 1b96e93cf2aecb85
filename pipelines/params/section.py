"""What every section of params.yaml is built on."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from segcore.data.address import check_address

AUTO = "auto"

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Size = Annotated[
    tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]
Address = Annotated[str, AfterValidator(lambda value: check_address(value, "this"))]
Range = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


class Section(BaseModel):
    """A mapping in params.yaml: every key known, every value of its own type."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class PlannedSection(Section):
    """A section of which any value may be `auto`: the stage plan puts a value in its place.

    The types are those of the values. Until a plan is applied (`load_planned`), a field may hold
    AUTO instead, which only the stage plan looks at.
    """

    @field_validator("*", mode="wrap")
    @classmethod
    def _admit_auto(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        return value if isinstance(value, str) and value == AUTO else check(value)
