"""params.yaml: its schema and its only reader."""

from pipelines.params.inference import (
    CRFParams,
    EvaluateParams,
    PredictParams,
    PromoteParams,
)
from pipelines.params.schema import AugmentParams, ClusterParams, Params, TrackingParams
from pipelines.params.section import Section
from pipelines.params.workers import Workers

__all__ = [
    "AugmentParams",
    "CRFParams",
    "ClusterParams",
    "EvaluateParams",
    "Params",
    "PredictParams",
    "PromoteParams",
    "Section",
    "TrackingParams",
    "Workers",
]
