"""What can go wrong outside segcore: the tracking store, the cluster, a run that fails."""

from segcore.errors import SegcoreError


class TrackingError(SegcoreError):
    """The MLflow store is out of reach, refuses, or is of a kind that is not supported."""


class OtherDataError(SegcoreError):
    """A registered model of this name was trained on other data."""


class ClusterError(SegcoreError):
    """The cluster cannot be reached, or has fewer resources than the params ask for."""


class TrainingFailedError(SegcoreError):
    """Training ended in an error that restarting workers did not cure."""


class ServingError(SegcoreError):
    """A server cannot listen where it is asked to."""
