"""What params.yaml says of evaluation and prediction."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipelines.params.section import Names, Section

if TYPE_CHECKING:
    from segcore.inference.crf import DenseCRF

Count = Annotated[int, Field(ge=1)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class PromoteParams(Section):
    metric: str = Field(description="a figure of the report; auto: the kind's headline")
    margin: float = Field(ge=0, description="candidate must beat champion by more than this")
    confidence: float = Field(gt=0.5, lt=1)
    resamples: int = Field(ge=100)
    seed: int = Field(ge=0)


class CRFParams(Section):
    """Options of `segcore.inference.crf.DenseCRF`, which refines probabilities at image edges."""

    iterations: int = Field(ge=0)
    gaussian_sxy: float = Field(gt=0, description="pixels")
    gaussian_weight: float = Field(ge=0)
    bilateral_sxy: float = Field(gt=0, description="pixels")
    bilateral_srgb: float = Field(gt=0, description="of colours in 0..255")
    bilateral_weight: float = Field(ge=0)

    def build(self) -> "DenseCRF":
        from segcore.inference.crf import DenseCRF

        return DenseCRF(**self.model_dump())


class EvaluateParams(Section):
    batch_size: Count | Literal["auto"]
    precision: Precision
    crf: CRFParams | None = Field(description="dense CRF after the model; null: none")
    promote: PromoteParams


class PredictParams(Section):
    images: str | None = Field(description="folder, glob, list file; null: test, or val")
    model: str | None = Field(description="model URI or package; null: the dataset's champion")
    overlays: bool
    extras: Names = Field(
        description="other files of a prediction: contours (GeoJSON), coco; of class maps also "
        "confidence, probabilities"
    )
    tta: list[Literal["flip", "scale"]] = Field(
        description="looks at mirrored, or resized, pictures as well; class maps only"
    )
    min_score: Annotated[float, Field(ge=0, le=1)] | None = Field(
        description="of objects that are kept; null: the model's own"
    )
    batch_size: Count | Literal["auto"] = Field(description="auto: 1 on a CPU, else 8")
    precision: Precision = Field(description="auto: bf16 where the hardware computes it")
    max_memory_gib: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        description="of a pass; larger images run in tiles; auto: half of what is free"
    )
    max_megapixels: float = Field(gt=0, description="larger files are refused unread")
    crf: CRFParams | None = Field(description="dense CRF after the model; null: none")
    ray_min_images: Count | Literal["auto"] = Field(
        description="from this many images on, Ray Data; auto: 500 with several accelerators, else "
        "never without a cluster: one process uses all cores"
    )
