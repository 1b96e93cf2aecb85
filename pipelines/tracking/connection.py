"""Reaching the MLflow store: one address for every process, refused or checked before any work."""

import fcntl
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import TrackingError
from pipelines.params import TrackingParams
from pipelines.storage import absolute

ANSWER_S = 8.0
SQLITE = "sqlite:///"
# What MLflow's pages open an experiment by; unset, they may take it for one of language models.
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"


@dataclass(frozen=True)
class Connection:
    """An MLflow store that answered.

    Args:
        client: an `mlflow.MlflowClient` with bounded retries.
        uri: the store's address, absolute.
        experiment_id: of `tracking.experiment`.
    """

    client: Any
    uri: str
    experiment_id: str

    def experiment(self, name: str) -> str:
        """Id of an experiment, made if need be, also by two processes at once."""
        return _experiment(self.client, self.uri, name)


def store_uri(uri: str) -> str:
    """The address as every process can use it: a relative sqlite path becomes absolute.

    Raises:
        TrackingError: the address is that of a file store.
    """
    scheme = uri.split(":", 1)[0].lower() if ":" in uri else "file"
    if scheme == "file" or len(scheme) == 1:
        raise TrackingError(
            f"tracking.uri {uri!r} is a file store, which MLflow no longer keeps registered models "
            "in: write sqlite:///mlflow.db, or the http address of a server"
        )
    if uri.startswith(SQLITE):
        return SQLITE + str(absolute(uri.removeprefix(SQLITE)))
    return uri


def connect_existing(tracking: TrackingParams) -> Connection:
    """As `connect`, for what only reads: no database is made where there is none.

    Raises:
        TrackingError: there is none; or as `connect`.
    """
    uri = store_uri(tracking.uri)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise TrackingError(
            f"there is no {uri.removeprefix(SQLITE)}: tracking.uri names another store than the "
            "one that the models were registered in, or it was removed"
        )
    return connect(tracking)


def connect(tracking: TrackingParams) -> Connection:
    """Open the store and the experiment, both created if need be.

    Raises:
        TrackingError: the store does not answer within about ten seconds, or refuses.
    """
    uri = check(tracking.uri)
    _settle()
    import mlflow
    from mlflow.exceptions import MlflowException

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        with _one_at_a_time(uri):
            client = mlflow.MlflowClient(uri)
            experiment_id = _experiment(client, uri, tracking.experiment)
        mlflow.set_experiment(experiment_id=experiment_id)  # where logged models are put
        return Connection(client, uri, experiment_id)
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri} refuses: {error}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in {"sqlalchemy", "sqlite3"}:
            raise
        raise _not_a_database(uri, str(error)) from error


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Where processes of this machine open one sqlite file: two cannot both set it up."""
    if not uri.startswith(SQLITE):
        yield
        return
    with open(f"{uri.removeprefix(SQLITE)}.lock", "ab") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None
        if uri.startswith(SQLITE):
            place = (Path(uri.removeprefix(SQLITE)).parent / "mlruns" / name).as_uri()
        return _make_experiment(client, name, place)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} was deleted in MLflow: `mlflow experiments restore -x "
            f"{found.experiment_id}`, or set tracking.experiment to another name"
        )
    if KIND not in found.tags:
        client.set_experiment_tag(found.experiment_id, KIND, TRAINING)
    return str(found.experiment_id)


def _make_experiment(client: Any, name: str, place: str | None) -> str:
    """A new experiment, or that which another process has made meanwhile."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=place, tags={KIND: TRAINING}))
    except MlflowException as error:
        found = client.get_experiment_by_name(name)
        if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(found.experiment_id)


def check(uri: str) -> str:
    """Find out cheaply, before the slow import, whether the store can be there at all.

    Returns:
        Its absolute address.

    Raises:
        TrackingError: it cannot.
    """
    uri = store_uri(uri)
    if uri.startswith(SQLITE):
        folder = Path(uri.removeprefix(SQLITE)).parent
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise TrackingError(f"{folder} of tracking.uri is not writable: choose another place")
        file = Path(uri.removeprefix(SQLITE))
        if file.is_file() and file.stat().st_size and not _is_sqlite(file):
            raise _not_a_database(uri, "it is no SQLite file")
    elif uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_S).close()
        except urllib.error.HTTPError:
            pass  # something answers; its API is asked next
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise TrackingError(
                f"no MLflow server answers at {uri} ({reason}): start it, or run without one by "
                "setting tracking.uri to sqlite:///mlflow.db"
            ) from error
    return uri


def _is_sqlite(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(16) == b"SQLite format 3\0"


def _not_a_database(uri: str, why: str) -> TrackingError:
    return TrackingError(
        f"{uri} cannot be opened as an MLflow database ({why}): move the file away, and a new one "
        "is made; the model is registered again from outputs/candidate"
    )


def _settle() -> None:
    """Bound retries: MLflow's defaults block a call for minutes when its server is away."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
