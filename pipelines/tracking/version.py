"""A registered model version."""

from dataclasses import dataclass
from typing import Any

DIGEST = "package_digest"
COMMIT = "git_commit"


@dataclass(frozen=True)
class Version:
    """A registered model version.

    Args:
        name: of the registered model.
        version: its number, as text.
        run_id: the run that made it; "" if none.
        package_digest: of the model package that it holds.
        commit: of the code that trained it; "" where it is not known.
    """

    name: str
    version: str
    run_id: str
    package_digest: str
    commit: str = ""

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}/{self.version}"


def read_version(entry: Any) -> Version:
    """Of what MLflow's client returns."""
    tags = entry.tags
    return Version(
        entry.name,
        str(entry.version),
        entry.run_id or "",
        package_digest=tags.get(DIGEST, ""),
        commit=tags.get(COMMIT, ""),
    )
