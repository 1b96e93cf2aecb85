"""What every worker of a prediction knows."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.mirror import Mirror
from pipelines.params import CRFParams, Params
from pipelines.prediction.files import sha256_of
from pipelines.prediction.inputs import Input
from pipelines.prediction.manifest import TORCH, Row
from segcore.data.place import Place
from segcore.errors import PackageError, unknown_name
from segcore.inference.predictor import FREE_SHARE
from segcore.inference.spec import PackageSpec
from segcore.machine import (
    available_memory_gib,
    choose_batch_size,
    choose_precision,
    describe_machine,
)
from segcore.package import DESCRIPTION, WEIGHTS, load_package, package_digest, read_spec
from segcore.tasks import Kind, get_kind
from segcore.tasks.kind import OVERLAYS, AnyPredictor, Columns, Output

BATCHES_PER_CALL = 2  # sizes may be mixed; as many are read meanwhile


@dataclass(frozen=True)
class Job:
    """What every worker of a prediction knows; small, so that it travels to other nodes.

    Args:
        package: folder of the model package, reachable by every worker.
        digest: of the package.
        version: models:/name/version, or the folder that the user gave.
        spec: of the package.
        out: absolute folder for the files of predictions and the manifest.
        base: folder that relative input paths start from; workers may run in another.
        extras: what is written beside the main files.
        batch_size: images that run through the model together.
        crf: of params.yaml; None for no dense CRF after the model.
        min_score: of objects; None for the model's own.
        precision: fp32, bf16 or fp16.
        max_memory_gib: of a pass of the model; None: half of what a worker finds free.
        max_megapixels: of an image file.
        tta: test-time augmentation of a model of class maps.
        run_id: of the MLflow run that trained the model; "" where that is not known.
        commit: of the code that trained it, likewise.
        exported: file that the engine runs; None where it is torch.
        engine: "torch", or a key of `segcore.export.ENGINES`.
        place: where the files go; `out` then has what is not finished. None: to `out`.
        package_place: where a node that has no `package` finds it; None: every node has it.
        memory_share: of a node's free memory that is this worker's, where it is not told.
    """

    package: Path
    digest: str
    version: str
    spec: PackageSpec
    out: Path
    base: Path
    extras: tuple[str, ...]
    batch_size: int
    crf: CRFParams | None
    min_score: float | None
    precision: str
    max_memory_gib: float | None
    max_megapixels: float
    tta: tuple[str, ...] = ()
    run_id: str = ""
    commit: str = ""
    exported: Path | None = None
    engine: str = TORCH
    place: Place | None = None
    package_place: Place | None = None
    memory_share: float = 1.0

    @property
    def shared(self) -> Mirror:
        """The folder of the files, wherever it is."""
        return Mirror(self.out, self.place)

    @property
    def images_per_call(self) -> int:
        """Images that the model is given at once, of which it puts those of one size together."""
        return self.batch_size if self.batch_size == 1 else BATCHES_PER_CALL * self.batch_size

    @property
    def kind(self) -> Kind:
        """What the model predicts."""
        return get_kind(self.spec.task)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What every input becomes, the main file first."""
        return self.kind.outputs(self.extras)

    @property
    def columns(self) -> Columns:
        """What the manifest says of a prediction beside what it says of every one."""
        return self.kind.columns(self.extras)

    def row(self, item: Input, status: str, reason: str = "") -> Row:
        """A row about `item` under this job's model."""
        return Row(
            path=item.path,
            status=status,
            reason=reason,
            model_digest=self.digest,
            model_version=self.version,
            dataset_digest=self.spec.dataset_digest,
            crf=self.crf.model_dump_json() if self.crf else "",
            precision=self.precision,
            min_score=self.min_score,
            run_id=self.run_id,
            commit=self.commit,
            engine=self.engine,
            tta=",".join(self.tta),
        )

    def made(self, item: Input, known: Row) -> bool:
        """Whether a row of an earlier run tells of this model, used in this way."""
        own = self.row(item, "ok")
        keys = ("model_digest", "crf", "precision", "min_score", "engine", "tta")
        told = all(known.facts.get(name) is not None for name, _ in self.columns)
        return told and all(getattr(known, key) == getattr(own, key) for key in keys)

    def is_written(self, item: Input) -> bool:
        """Whether the files of `item` are there; says nothing about which model wrote them."""
        return all(self.shared.has(name) for name in self.files(item))

    def is_whole(self, item: Input, known: Row) -> bool:
        """Whether the files of `item` are there with the content that a row tells of."""
        return all(
            self.shared.has(name)
            and known.files.get(name, "") in ("", sha256_of(name, self.shared))
            for name in self.files(item)
        )

    def files(self, item: Input) -> list[str]:
        """Names of what is written for `item`, the main file first, relative to `out`."""
        return [output.path(item.name) for output in self.outputs]

    def load(self, device: str) -> AnyPredictor:
        """The model, ready for images."""
        gib = self.max_memory_gib
        if gib is None and self.memory_share < 1:
            gib = self.memory_share * FREE_SHARE * available_memory_gib(device)
        options: dict[str, Any] = {"precision": self.precision, "max_memory_gib": gib}
        if self.crf is not None:
            options["crf"] = self.crf.build()
        if self.tta:
            options["tta"] = self.tta
        options |= self.kind.predictor_options(self.extras)
        if self.min_score is not None:
            options["min_score"] = self.min_score
        if self.exported is not None:
            from segcore.export import load_exported

            return load_exported(self.exported, engine=self.engine, **options)
        return load_package(self._fetched(), device=device, **options)

    def _fetched(self) -> Path:
        """The package on this node.

        Raises:
            PackageError: what is shared is another one.
        """
        if self.package_place is None or self.package.is_dir():
            return self.package
        folder = Path(tempfile.gettempdir()) / f"segcore-{os.getuid()}" / self.digest[:16]
        return fetch_package(self.package_place, folder, self.digest)


def fetch_package(place: Place, folder: Path, digest: str | None = None) -> Path:
    """Copy a package out of a bucket.

    Raises:
        PackageError: there is none, or it has another digest.
    """
    try:
        for name in (DESCRIPTION, WEIGHTS):
            place.download(name, folder / name)
    except FileNotFoundError as error:
        raise PackageError(f"{place} is no model package: it lacks {DESCRIPTION}") from error
    if digest is not None and package_digest(folder) != digest:
        raise PackageError(f"{place} holds another package than was asked for: run again")
    return folder


def make_job(
    params: Params,
    *,
    package: Path,
    version: str,
    out: Mirror,
    overlays: bool,
    run_id: str = "",
    commit: str = "",
) -> Job:
    """What `predict` of params.yaml asks for; "auto" by the machine that this runs on.

    `run_id` and `commit` say what trained the model, where that is known.

    Raises:
        PackageError: the model is not a whole package.
        UnknownNameError: predictions of its kind have no such extra file.
    """
    asked, machine = params.predict, describe_machine()
    spec = read_spec(package)
    for extra in asked.extras:
        if extra not in get_kind(spec.task).extras:
            raise unknown_name("extra of predict", extra, get_kind(spec.task).extras)
    return Job(
        package=package,
        digest=package_digest(package),
        version=version,
        spec=spec,
        out=out.folder.resolve(),
        place=out.place,
        base=Path.cwd(),
        extras=(*asked.extras, *((OVERLAYS,) if overlays else ())),
        batch_size=choose_batch_size(asked.batch_size, machine),
        crf=asked.crf,
        min_score=asked.min_score,
        tta=tuple(asked.tta),
        precision=choose_precision(asked.precision, machine),
        max_memory_gib=None if asked.max_memory_gib == "auto" else asked.max_memory_gib,
        max_megapixels=asked.max_megapixels,
        run_id=run_id,
        commit=commit,
    )
