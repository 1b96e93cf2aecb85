"""What the store says of the run that trained a model."""

from dataclasses import dataclass

from pipelines.errors import TrackingError
from pipelines.params import TrackingParams
from pipelines.tracking.connection import connect_existing
from pipelines.tracking.source import GIT_COMMIT


@dataclass(frozen=True)
class Training:
    """The run that trained a model; "" for what it does not say.

    Args:
        name: shown in MLflow.
        status: FINISHED, FAILED, KILLED or RUNNING.
        user: who started it.
        commit: of the code.
        dirty: there were changes that were not committed.
        dataset_digest: of the shards.
    """

    name: str
    status: str
    user: str
    commit: str
    dirty: bool
    dataset_digest: str


def read_training(tracking: TrackingParams, run_id: str) -> Training:
    """The run of this id.

    Raises:
        TrackingError: the store is not there or has no such run.
    """
    connection = connect_existing(tracking)
    from mlflow.exceptions import MlflowException

    try:
        run = connection.client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"MLflow at {connection.uri} has no run {run_id}: {error}") from error
    tags = run.data.tags
    return Training(
        name=run.info.run_name,
        status=run.info.status,
        user=tags.get("mlflow.user", ""),
        commit=tags.get(GIT_COMMIT, ""),
        dirty=tags.get("git_dirty") == "true",
        dataset_digest=tags.get("dataset_digest", ""),
    )
