"""Where a job works: in this folder, where the nodes see it, or in one that both see."""

import shutil
from pathlib import Path

from pipelines import storage
from pipelines.errors import ClusterError
from pipelines.params import Params
from pipelines.params.file import read_yaml

DVC = "dvc.yaml"
OURS = ("data", "outputs")


class Workplace:
    """The folder that a job's relative paths start from, and what travels to it and back.

    Args:
        stage: name in dvc.yaml.
        params: of the project; `cluster.submit_root` is the folder, null this one.
    """

    def __init__(self, stage: str, params: Params) -> None:
        shared = params.cluster.submit_root
        self.here = storage.root()
        self.root = self.here if shared is None else Path(shared)
        self.key = f"{stage} {self.root}"
        if not self.root.is_dir():
            raise ClusterError(
                f"cluster.submit_root {shared!r} is no folder here: mount one that the nodes see "
                "under the same path, or set it to null where they see this one"
            )
        self._deps, self._outs = travelling(stage, params, self.here)

    def send(self) -> None:
        """Copy what the stage reads, where the job works elsewhere."""
        if self.root != self.here:
            shutil.copy(self.here / "params.yaml", self.root / "params.yaml")
            for name in self._deps:
                replace(self.here / name, self.root / name)

    def fetch(self) -> None:
        """Copy back what the stage made."""
        if self.root != self.here:
            for name in self._outs:
                replace(self.root / name, self.here / name)


def travelling(stage: str, params: Params, root: Path) -> tuple[list[str], list[str]]:
    """The data that a stage of dvc.yaml reads, and what it makes: paths from the project's top."""
    facts = read_yaml(root / DVC)["stages"][stage]
    flat = params.flat()

    def names(entries: list[object]) -> list[str]:
        found = [str(next(iter(e)) if isinstance(e, dict) else e) for e in entries]
        for key, value in flat.items():
            found = [name.replace(f"${{{key}}}", str(value)) for name in found]
        return [name for name in found if Path(name).parts[0] in OURS]

    return names(facts.get("deps", [])), names(facts.get("outs", []))


def replace(source: Path, target: Path) -> None:
    """Make `target` what `source` is, by rename at the end; absent is absent."""
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(part)
    if source.is_dir():
        shutil.copytree(source, part)
    elif source.is_file():
        shutil.copy2(source, part)
    remove(target)
    if part.exists():
        part.rename(target)


def remove(path: Path) -> None:
    """Delete a file or a folder that may be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
