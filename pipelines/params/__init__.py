"""params.yaml: its schema and its only reader."""

from pipelines.params.schema import (
    AugmentParams,
    ClusterParams,
    CRFParams,
    EvaluateParams,
    Params,
    PredictParams,
    PromoteParams,
    TrackingParams,
)
from pipelines.params.section import Section

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
]
