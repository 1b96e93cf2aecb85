"""From a mask back to the commit, link by link, each checked where that can still be done."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import TrackingError
from pipelines.params import Params
from pipelines.prediction import manifest, png_facts
from pipelines.prediction.files import sha256_file
from pipelines.prediction.manifest import Row
from pipelines.prediction.verify import REGISTRY, file_faults, input_state
from pipelines.sources import RAW, SHARDS
from pipelines.storage import absolute, root
from pipelines.tracking.lineage import Training, read_training
from pipelines.tracking.registry import Registry
from pipelines.tracking.version import Version
from segcore.data.shards import ShardedDataset, open_shards
from segcore.datasets.origin import read_origin
from segcore.errors import DataError, PackageError, SegcoreError
from segcore.inference.spec import PackageSpec
from segcore.package import package_digest, read_spec

VERIFIED, OPEN, CONTRADICTED = "verified", "open", "contradicted"
MARKS = {VERIFIED: "ok", OPEN: "?", CONTRADICTED: "NO"}
SHOWN = 12  # characters of a digest


@dataclass(frozen=True)
class Link:
    """One link of the chain.

    Args:
        name: "mask", "row", ...
        value: what the facts say; "" where they say nothing.
        state: verified, open (it cannot be verified any more) or contradicted.
        note: what was compared, or why it could not be.
    """

    name: str
    value: str
    state: str
    note: str


def trace(params: Params, mask: Path) -> list[Link]:
    """The chain of a mask: mask, input, row, version, run, plan, shards, archive, commit.

    Args:
        params: `tracking` and `cluster.storage` are used.
        mask: main file of a prediction.

    Raises:
        DataError: it is not there, or neither it nor a manifest above it says what made it.
    """
    if not mask.is_file():
        raise DataError(f"{mask} does not exist: give a mask that predict wrote")
    out, row = _find_row(mask)
    facts = png_facts.read(mask)
    if facts is None and row is None:
        raise DataError(
            f"{mask} holds no facts of how it was made, and no {manifest.FILE} in a folder above "
            "tells of it: give a mask that predict wrote, where it wrote it"
        )
    known = facts if facts is not None else manifest.made_of(row) if row else {}
    said = {key: str(value) for key, value in known.items()}
    return [
        *_outputs(mask, out, row, facts),
        *_Chain(params, said).links(),
    ]


def _find_row(mask: Path) -> tuple[Path | None, Row | None]:
    place = mask.resolve()
    for folder in place.parents:
        if (folder / manifest.FILE).is_file():
            name = place.relative_to(folder).as_posix()
            rows = manifest.read(folder).values()
            return folder, next((row for row in rows if row.mask_path == name), None)
    return None, None


def _outputs(
    mask: Path, out: Path | None, row: Row | None, facts: dict[str, Any] | None
) -> Iterator[Link]:
    """Mask, row and input."""
    digest = f"sha256 {sha256_file(mask)[:SHOWN]}"
    if out is None or row is None:
        missing = "no manifest in a folder above" if out is None else "no row tells of it"
        yield Link("mask", digest, OPEN, missing)
        yield Link("row", "", OPEN, missing)
        path = (facts or {}).get("input", "")
        yield Link("input", str(path), OPEN, "its digest is in the mask; see the manifest for it")
        return
    faults = [why for name, why in file_faults(out, row) if name == row.mask_path]
    if faults:
        yield Link("mask", digest, CONTRADICTED, faults[0])
    elif row.mask_path in row.files:
        yield Link("mask", digest, VERIFIED, "as the manifest says")
    else:
        yield Link("mask", digest, OPEN, "the manifest is older than content hashes")
    where = f"{out / manifest.FILE}: {row.path}"
    if facts is None:
        yield Link("row", where, OPEN, "the mask itself does not say how it was made")
    elif facts == manifest.made_of(row):
        yield Link("row", where, VERIFIED, "the mask says the same of how it was made")
    else:
        yield Link("row", where, CONTRADICTED, "the mask says other things of how it was made")
    changed = input_state(row)
    state = VERIFIED if not changed else CONTRADICTED if changed == "changed" else OPEN
    note = {"": "its bytes are the same", "changed": "its bytes have changed since"}
    yield Link(
        "input", f"{row.path}, sha256 {row.sha256[:SHOWN]}", state, note.get(changed, changed)
    )


class _Chain:
    """From what made a mask back to the commit.

    Args:
        params: of the tracking store.
        said: facts of the mask, by the names of `manifest.MADE_BY`.
    """

    def __init__(self, params: Params, said: dict[str, str]) -> None:
        self._params = params
        self._said = said
        self._version = said.get("model_version", "")
        self._digest = said.get("model_digest", "")

    def links(self) -> Iterator[Link]:
        """Version, run, plan, shards, archive, commit."""
        for name, check in (
            ("version", self._model), ("run", self._run), ("plan", self._plan),
            ("shards", self._shards), ("archive", self._archive), ("commit", self._commit),
        ):  # fmt: skip
            value, state, note = check()
            yield Link(name, value, state, note)

    @cached_property
    def _registered(self) -> Version | str:
        """The version of the registry that holds the package, or why none is found."""
        try:
            registry = Registry(self._params, existing=True)
            if self._version.startswith(REGISTRY):
                return registry.resolve(self._version)
            return registry.find_digest(self._digest) or "no version of the registry holds it"
        except TrackingError as error:
            return _first_line(error)

    @cached_property
    def _package(self) -> Path | str:
        """The folder of the package with the digest that the mask names, or why there is none."""
        try:
            if not self._version.startswith(REGISTRY):
                folder = absolute(self._version)
            elif isinstance(self._registered, str):
                return self._registered
            else:
                folder = Registry(self._params, existing=True).download(self._registered)
            found = package_digest(folder)
        except (TrackingError, PackageError) as error:
            return _first_line(error)
        if found != self._digest:
            return f"the package in {folder} is another one, {found[:SHOWN]}"
        return folder

    @cached_property
    def _spec(self) -> PackageSpec | None:
        return read_spec(self._package) if isinstance(self._package, Path) else None

    @cached_property
    def _training(self) -> Training | str:
        run_id = self._run_id
        if not run_id:
            found = self._registered
            return found if isinstance(found, str) else "the version names no run"
        try:
            return read_training(self._params.tracking, run_id)
        except TrackingError as error:
            return _first_line(error)

    @property
    def _run_id(self) -> str:
        registered = self._registered
        own = "" if isinstance(registered, str) else registered.run_id
        return self._said.get("run_id") or own

    def _model(self) -> tuple[str, str, str]:
        value, registered = f"{self._version}, package {self._digest[:SHOWN]}", self._registered
        if isinstance(registered, Version) and registered.package_digest != self._digest:
            other = registered.package_digest[:SHOWN]
            return value, CONTRADICTED, f"the registry has package {other} under this version"
        if isinstance(self._package, str):
            return value, OPEN, self._package
        if isinstance(registered, str):
            return value, VERIFIED, f"the package's files have this digest; {registered}"
        return value, VERIFIED, f"the package's files have this digest; {registered.uri}"

    def _run(self) -> tuple[str, str, str]:
        found = self._training
        if isinstance(found, str):
            return self._run_id, OPEN, found
        value = f"{self._run_id} {found.name!r}{f' by {found.user}' if found.user else ''}"
        return value, VERIFIED, f"the run is in MLflow, {found.status}"

    def _plan(self) -> tuple[str, str, str]:
        if self._spec is None:
            return "", OPEN, "it is in the package, which is not there"
        plan = self._spec.extra.get("plan")
        settings = (
            f"{self._spec.architecture} with {self._spec.extra.get('loss', 'an unknown loss')}"
        )
        if not plan:
            return settings, VERIFIED, "nothing was auto: params.yaml of the run is the plan"
        return f"{settings}; {len(plan)} decisions", VERIFIED, "in the package, under its digest"

    @cached_property
    def _dataset(self) -> ShardedDataset | None:
        """Shards in this project with the digest that the mask names."""
        for folder in sorted(absolute(SHARDS).glob("*/")):
            try:
                dataset = open_shards(folder)
            except SegcoreError:
                continue
            if dataset.digest == self._said.get("dataset_digest"):
                return dataset
        return None

    def _shards(self) -> tuple[str, str, str]:
        digest = self._said.get("dataset_digest", "")
        name = self._spec.dataset_name if self._spec else ""
        value = f"{name} {digest[:SHOWN]}".strip()
        others = {
            "the package": self._spec.dataset_digest if self._spec else "",
            "the run": self._training.dataset_digest
            if isinstance(self._training, Training)
            else "",
        }
        for who, other in others.items():
            if other and other != digest:
                return value, CONTRADICTED, f"{who} was trained on shards {other[:SHOWN]}"
        if self._dataset is None:
            agreed = " and ".join(who for who, other in others.items() if other)
            also = f"; {agreed} say the same" if agreed else ""
            return value, OPEN, f"no shards in {SHARDS} have this digest{also}"
        return value, VERIFIED, f"{self._dataset.path} has this digest"

    def _archive(self) -> tuple[str, str, str]:
        meta = self._dataset.meta if self._dataset else None
        origin = (meta.origin if meta else {}) or (
            self._spec.extra.get("origin") if self._spec else {}
        )
        if not origin:
            return "", OPEN, "the shards do not say, or are older than that"
        value = f"{origin['origin']}, files {origin['digest'][:SHOWN]}"
        places = sorted(absolute(RAW).glob("*/"))
        for folder in places:
            if read_origin(folder).get("digest") == origin["digest"]:
                return value, VERIFIED, f"{folder} was filled with these files"
        return value, OPEN, f"no folder in {RAW} was filled with these files"

    def _commit(self) -> tuple[str, str, str]:
        found = self._training
        commit = self._said.get("commit") or (found.commit if isinstance(found, Training) else "")
        if not commit:
            return "", OPEN, "neither the mask nor a run says it"
        if isinstance(found, Training) and found.commit and found.commit != commit:
            return commit, CONTRADICTED, f"the run says {found.commit}"
        git = ["git", "-C", str(root()), "cat-file", "-e", f"{commit}^{{commit}}"]
        if _fails(lambda: subprocess.run(git, capture_output=True, check=True)):
            return commit, OPEN, f"the repository in {root()} has no such commit"
        if isinstance(found, Training) and found.dirty:
            return commit, OPEN, "there were changes that were not committed"
        return commit, VERIFIED, "the commit is in this repository"


def _fails(command: Callable[[], Any]) -> bool:
    try:
        command()
    except (OSError, subprocess.SubprocessError):
        return True
    return False


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
