"""Outputs against their manifest: nothing is predicted, every content hash is taken again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from pipelines.errors import TrackingError
from pipelines.params import Params
from pipelines.prediction import journal, manifest, png_facts
from pipelines.prediction.files import PART, sha256_file
from pipelines.prediction.inputs import Input, read_bytes, shard_rows
from pipelines.prediction.manifest import Row
from pipelines.progress import progress
from pipelines.storage import absolute
from pipelines.tracking.registry import Registry
from segcore.errors import DataError, PackageError
from segcore.package import package_digest

REGISTRY = "models:/"
DIFFERS = 3


@dataclass
class Verification:
    """What a check found.

    Args:
        checked: rows of results whose files are all as the manifest says.
        faults: (file or input, what is wrong with it).
        open: (what, why it cannot be verified any more).
        failed: rows without a result: inputs that could not be predicted, or are no images.
    """

    checked: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    open: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0

    @property
    def exit_code(self) -> int:
        """0, or 3 when something is not as the manifest says."""
        return DIFFERS if self.faults else 0

    def __str__(self) -> str:
        parts = [f"{self.checked} results are as the manifest says"]
        parts += [f"{len(self.faults)} things are not"] if self.faults else []
        parts += [f"{len(self.open)} cannot be verified any more"] if self.open else []
        parts += [f"{self.failed} inputs have no result"] if self.failed else []
        return f"verify: {', '.join(parts)}"


def verify(params: Params, out: Path) -> Verification:
    """Check every row of a folder of predictions.

    The content of each file and of each input, what the masks themselves say of model and options,
    the digest of each model package, and that no file is there that no row tells of.

    Args:
        params: `tracking` and `cluster.storage` are used, where a model is of the registry.
        out: folder with manifest.parquet; relative inputs start from the current folder.

    Raises:
        DataError: there is no manifest.
    """
    rows = manifest.read(out)
    if not rows:
        raise DataError(f"no {manifest.FILE} in {out}: give the folder that predict wrote (--out)")
    found = Verification()
    if journal.exists(out):
        found.faults.append((str(out), "the job did not come to its end: run it again"))
    models = {(row.model_digest, row.model_version) for row in rows.values() if row.mask_path}
    for digest, version in sorted(models):
        check_model(params, digest, version, found)
    with progress("verify", len(rows)) as advance:
        for row in rows.values():
            _check_row(out, row, found)
            advance(1)
    found.faults += [(name, "no row of the manifest tells of it") for name in _strays(out, rows)]
    return found


def check_model(params: Params, digest: str, version: str, found: Verification) -> None:
    """Add to `found` what is wrong with the package that a row names."""
    what = f"model {version}"
    try:
        if version.startswith(REGISTRY):
            registry = Registry(params, existing=True)
            package = registry.download(registry.resolve(version))
        else:
            package = absolute(version)
        now = package_digest(package)
    except (TrackingError, PackageError) as error:
        found.open.append((what, f"the package is not there: {error}"))
        return
    if now == digest:
        return
    if version.startswith(REGISTRY):
        found.faults.append((what, f"its package has digest {now[:12]}, not {digest[:12]}"))
    else:  # a folder is written again by the next training
        found.open.append((what, f"another package, {now[:12]}, took the place of {digest[:12]}"))


def _check_row(out: Path, row: Row, found: Verification) -> None:
    if not row.mask_path:
        found.failed += 1
        return
    faults = list(file_faults(out, row))
    found.faults += faults
    found.checked += not faults
    state = input_state(row)
    if state == "changed":
        found.faults.append((row.path, "the input has changed since: predict it again"))
    elif state:
        found.open.append((row.path, state))


def file_faults(out: Path, row: Row) -> Iterator[tuple[str, str]]:
    """(file, what is wrong) of the files of one result."""
    for name, digest in (row.files or {row.mask_path: ""}).items():
        if not (out / name).is_file():
            yield name, "it is missing: run predict again"
        elif digest and sha256_file(out / name) != digest:
            yield name, "its content is not what was written: run predict again"
    facts, said = png_facts.read(out / row.mask_path), manifest.made_of(row)
    if facts is not None and facts != said:
        keys = [key for key in sorted({*facts, *said}) if facts.get(key) != said.get(key)]
        yield row.mask_path, f"it says other things of how it was made: {', '.join(keys)}"


def input_state(row: Row) -> str:
    """ "" for an input with the content that was predicted, "changed", or why that is not known."""
    try:
        path, _, name = row.path.rpartition("#")
        number = _shard_rows(path).get(name, -1) if path.endswith(".parquet") else -1
        data = read_bytes(Input(row.path, "", row=number))
    except DataError as error:
        return str(error)
    return "" if sha256(data).hexdigest() == row.sha256 else "changed"


@lru_cache(maxsize=4)
def _shard_rows(path: str) -> Mapping[str, int]:
    return shard_rows(Path(path))


def _strays(out: Path, rows: Mapping[str, Row]) -> Iterator[str]:
    known = {name for row in rows.values() for name in (row.mask_path, *row.files)}
    for folder in sorted({Path(name).parts[0] for name in known if name}):
        for file in sorted((out / folder).rglob("*")):
            name = file.relative_to(out).as_posix()
            if file.is_file() and (name not in known or PART.fullmatch(file.name)):
                yield name
