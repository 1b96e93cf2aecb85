"""Model versions in the MLflow registry: one per package digest, found again by it."""

import json
import os
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import segcore
from pipelines.errors import TrackingError
from pipelines.params import Params
from pipelines.storage import absolute
from pipelines.tracking.connection import Connection, connect
from pipelines.tracking.own_data import check_same_data, data_tags
from pipelines.tracking.source import source_tags

CANDIDATE = "candidate"
CHAMPION = "champion"
DIGEST = "package_digest"
MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIRED = ("numpy", "pillow", "pyarrow", "safetensors", "scipy", "torch", "torchvision")
EXAMPLE_SIZE = 64


@dataclass(frozen=True)
class Version:
    """A registered model version.

    Args:
        name: of the registered model.
        version: its number, as text.
        run_id: the run that made it; "" if none.
        package_digest: of the model package that it holds.
    """

    name: str
    version: str
    run_id: str
    package_digest: str

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}/{self.version}"


def model_name(dataset: str) -> str:
    """Name of the registered model of a dataset."""
    return f"segcore-{dataset}"


class Registry:
    """The registry of the store that params name.

    Raises:
        TrackingError: the store does not answer; by methods too.
    """

    def __init__(self, params: Params) -> None:
        self._connection: Connection = connect(params.tracking)
        self._client = self._connection.client
        self._downloads = absolute(params.cluster.storage) / "models"

    def register(
        self, package: Path, run_id: str | None = None, alias: str | None = CANDIDATE
    ) -> Version:
        """Register a package; the version that already holds this package is found again.

        Args:
            package: folder written by `segcore.save_package`.
            run_id: the run that trained it; one is opened for it if None.
            alias: moved to the version; None leaves aliases alone.

        Raises:
            OtherDataError: the champion of this name was trained on other data.
        """
        from mlflow.exceptions import MlflowException

        digest = segcore.package_digest(package)
        name = model_name(_spec(package).dataset_name)
        try:
            found = self.find(name, digest)
            if found is None:
                self.check_data(_spec(package))
                found = self._add(name, package, digest, run_id)
            if alias:
                self.alias(found, alias)
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"MLflow at {self._connection.uri} did not take {package}: {error}. The package "
                "is whole; it is registered when the evaluate stage runs"
            ) from error
        return found

    def ensure_registered(self, package: Path) -> Version:
        """The version of a package, made anew where the store has lost it; alias `candidate`."""
        return self.register(package)

    def check_data(self, spec: "segcore.PackageSpec") -> None:
        """Compare the data of a model with that of the champion, else candidate, of its name.

        Raises:
            OtherDataError: they are not the same; see `check_same_data`.
        """
        name = model_name(spec.dataset_name)
        there = self._entry(name, CHAMPION) or self._entry(name, CANDIDATE)
        if there is not None:
            check_same_data(name, str(there.version), there.tags, data_tags(spec))

    def find(self, name: str, digest: str) -> Version | None:
        """The version that holds the package of this digest."""
        query = f"name = '{name}' and tag.`{DIGEST}` = '{digest}'"
        versions = self._client.search_model_versions(query)
        ready = [_version(entry) for entry in versions if entry.status == "READY"]
        return max(ready, key=lambda entry: int(entry.version), default=None)

    def get(self, name: str, alias: str) -> Version | None:
        """The version that an alias points to; None if there is none."""
        found = self._entry(name, alias)
        return None if found is None else _version(found)

    def _entry(self, name: str, alias: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise TrackingError(f"MLflow at {self._connection.uri}: {error}") from error

    def alias(self, version: Version, alias: str) -> None:
        """Point an alias at a version."""
        self._client.set_registered_model_alias(version.name, alias, version.version)

    def promote(self, version: Version) -> None:
        """Point `champion` at a version."""
        self.alias(version, CHAMPION)

    def set_tags(self, version: Version, tags: dict[str, Any]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(version.name, version.version, key, str(value))

    def resolve(self, uri: str) -> Version:
        """The version that a URI models:/name@alias or models:/name/version names.

        Raises:
            TrackingError: there is none.
        """
        from mlflow.exceptions import MlflowException

        name, at, alias = uri.removeprefix("models:/").partition("@")
        if at:
            found = self.get(name, alias)
            if found is None:
                raise TrackingError(f"no version {uri}: run the train and evaluate stages first")
            return found
        name, _, number = name.partition("/")
        try:
            return _version(self._client.get_model_version(name, number))
        except MlflowException as error:
            raise TrackingError(f"no version {uri}: {error}") from error

    def download(self, version: Version) -> Path:
        """Folder of a version's package; kept locally by digest, fetched once."""
        import mlflow

        folder = self._downloads / (version.package_digest or f"{version.name}-{version.version}")
        if (folder / "model.json").is_file():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            fetched = mlflow.artifacts.download_artifacts(
                artifact_uri=version.uri, dst_path=os.fspath(part)
            )
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise TrackingError(
                f"the files of {version.uri} cannot be read ({error}): register the model again "
                "by running the evaluate stage"
            ) from error
        package = next(Path(fetched).glob("artifacts/*/model.json")).parent
        try:
            package.rename(folder)
        except OSError:
            if not (folder / "model.json").is_file():  # another process was not faster either
                raise
        return folder

    def _add(self, name: str, package: Path, digest: str, run_id: str | None) -> Version:
        opened = run_id is None
        if run_id is None:
            tags = {"dvc_stage": "register", **source_tags()}
            created = self._client.create_run(
                self._connection.experiment_id, run_name="register", tags=tags
            )
            run_id = created.info.run_id
        spec = _spec(package)
        tags = {DIGEST: digest, "architecture": spec.architecture, **data_tags(spec)}
        made = self._create_version(name, _log_model(package, run_id), run_id, tags)
        if opened:
            self._client.set_terminated(run_id, "FINISHED")
        return Version(name, str(made.version), run_id, digest)

    def _create_version(self, name: str, logged: Any, run_id: str, tags: dict[str, str]) -> Any:
        """`mlflow.register_model`, without what that prints."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._client.create_model_version(
            name, logged.model_uri, run_id=run_id, tags=tags, model_id=logged.model_id
        )
        link = json.dumps([{"name": name, "version": made.version}])
        self._client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
        return made


def _log_model(package: Path, run_id: str) -> Any:
    """Log a package as a pyfunc model whose code is segcore's own source, without a pickle."""
    import mlflow
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from segcore.tasks import get_kind

    spec = _spec(package)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, spec.in_channels))]),
        outputs=Schema(
            [
                TensorSpec(np.dtype(tensor.dtype), tensor.shape, tensor.name or None)
                for tensor in get_kind(spec.task).served
            ]
        ),
    )
    # The signature is given; MLflow warns that it would rather read it off type hints.
    with warnings.catch_warnings(record=True):
        return Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=os.fspath(MODEL_CODE),
            artifacts={"package": os.fspath(package)},
            code_paths=[os.fspath(Path(segcore.__file__).parent)],
            signature=signature,
            input_example=np.zeros((1, EXAMPLE_SIZE, EXAMPLE_SIZE, spec.in_channels), np.uint8),
            pip_requirements=_requirements(),
        )


def _requirements() -> list[str]:
    """What the model runs on, without the local build tags that no index has."""
    pins = []
    for name in REQUIRED:
        try:
            pins.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            pins.append(name)
    return pins


def _spec(package: Path) -> Any:
    from segcore.package import read_spec

    return read_spec(package)


def _version(entry: Any) -> Version:
    digest = entry.tags.get(DIGEST, "")
    return Version(entry.name, str(entry.version), entry.run_id or "", digest)
