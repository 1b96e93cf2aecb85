"""Model versions in the MLflow registry: one per package digest, found again by it."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import segcore
from pipelines.errors import TrackingError
from pipelines.params import Params
from pipelines.storage import scratch
from pipelines.tracking.connection import Connection, connect, connect_existing
from pipelines.tracking.history import Evidence, History
from pipelines.tracking.logged_model import log_model
from pipelines.tracking.own_data import check_same_data, data_tags
from pipelines.tracking.source import GIT_COMMIT, source_tags
from pipelines.tracking.version import COMMIT, DIGEST, Version, read_version
from segcore.errors import OptionError

CANDIDATE = "candidate"
CHAMPION = "champion"


def model_name(dataset: str) -> str:
    """Name of the registered model of a dataset."""
    return f"segcore-{dataset}"


class Registry:
    """The registry of the store that params name.

    Args:
        params: `tracking` and `cluster.storage` are used.
        existing: the store has to be there already.

    Raises:
        TrackingError: the store does not answer; by methods too.
    """

    def __init__(self, params: Params, *, existing: bool = False) -> None:
        opening = connect_existing if existing else connect
        self._connection: Connection = opening(params.tracking)
        self._client = self._connection.client
        self._downloads = scratch(params.cluster.storage) / "models"

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
                found = self._only(self._add(name, package, digest, run_id))
            if alias:
                spec = _spec(package)
                figures = {
                    key: v for key, v in spec.metrics.items() if v is not None and "/" not in key
                }
                reason = f"registered, trained on {spec.dataset_name or 'unnamed data'}"
                self.alias(found, alias, Evidence(reason, found.run_id, figures))
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
        """The version that holds the package of this digest, the first where there are several."""
        query = f"name = '{name}' and tag.`{DIGEST}` = '{digest}'"
        versions = self._client.search_model_versions(query)
        ready = [read_version(entry) for entry in versions if entry.status == "READY"]
        return min(ready, key=lambda entry: int(entry.version), default=None)

    def find_digest(self, digest: str) -> Version | None:
        """The version of any name that holds the package of this digest."""
        found = self._client.search_model_versions(f"tag.`{DIGEST}` = '{digest}'")
        return read_version(found[0]) if found else None

    def get(self, name: str, alias: str) -> Version | None:
        """The version that an alias points to; None if there is none."""
        found = self._entry(name, alias)
        return None if found is None else read_version(found)

    def _entry(self, name: str, alias: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise TrackingError(f"MLflow at {self._connection.uri}: {error}") from error

    def alias(self, version: Version, alias: str, evidence: Evidence) -> None:
        """Point an alias at a version; a move is written to the history before it is made."""
        before = self.get(version.name, alias)
        if before is not None and before.version == version.version:
            return
        self.history(version.name).append(
            alias,
            version=version.version,
            previous=before.version if before else "",
            digest=version.package_digest,
            evidence=evidence,
        )
        self._client.set_registered_model_alias(version.name, alias, version.version)

    def promote(self, version: Version, evidence: Evidence) -> None:
        """Point `champion` at a version."""
        self.alias(version, CHAMPION, evidence)

    def full_name(self, name: str) -> str:
        """The registered model of this name, or that of the dataset of this name.

        Raises:
            TrackingError: there is neither; lists those that there are.
        """
        known = sorted(
            model.name for model in self._client.search_registered_models(max_results=1000)
        )
        for candidate in (name, model_name(name)):
            if candidate in known:
                return candidate
        there = ", ".join(known) or "none"
        raise TrackingError(
            f"MLflow at {self._connection.uri} has no model {name}. Registered: {there}"
        )

    def history(self, name: str) -> History:
        """Every move of an alias of a registered model."""
        return History(self._connection, name)

    def restore(self, name: str, number: str) -> Version:
        """Point `champion` at a version that was champion before, with the evidence of then.

        Raises:
            OptionError: it never was; names those that were.
            TrackingError: its package is not there whole.
        """
        moves = [move for move in self.history(name).moves() if move.alias == CHAMPION]
        then = next((move for move in reversed(moves) if move.version == number), None)
        if then is None:
            past = ", ".join(dict.fromkeys(move.version for move in moves)) or "there are none"
            raise OptionError(f"version {number} of {name} was never champion. Champions: {past}")
        version = self.resolve(f"models:/{name}/{number}")
        found = segcore.package_digest(self.download(version))
        if found != then.digest:
            raise TrackingError(
                f"{version.uri} holds package {found[:12]}, it was champion as {then.digest[:12]}: "
                "restore another version"
            )
        reason = f"brought back; champion of {then.time}: {then.evidence.reason}"
        self.promote(version, replace(then.evidence, reason=reason))
        return version

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
            return read_version(self._client.get_model_version(name, number))
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

    def _only(self, made: Version) -> Version:
        """The version of this package that counts: another process may have added one meanwhile.

        All see the same first version, and take back their own.
        """
        first = self.find(made.name, made.package_digest) or made
        if first.version != made.version:
            self._client.delete_model_version(made.name, made.version)
        return first

    def _add(self, name: str, package: Path, digest: str, run_id: str | None) -> Version:
        opened = run_id is None
        if run_id is None:
            tags = {"dvc_stage": "register", **source_tags()}
            created = self._client.create_run(
                self._connection.experiment_id, run_name="register", tags=tags
            )
            run_id = created.info.run_id
        spec = _spec(package)
        commit = self._client.get_run(run_id).data.tags.get(GIT_COMMIT, "")
        tags = {DIGEST: digest, "architecture": spec.architecture, **data_tags(spec)}
        tags |= {COMMIT: commit} if commit else {}
        made = self._create_version(name, log_model(package, run_id), run_id, tags)
        if opened:
            self._client.set_terminated(run_id, "FINISHED")
        return Version(name, str(made.version), run_id, digest, commit)

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


def _spec(package: Path) -> Any:
    from segcore.package import read_spec

    return read_spec(package)
