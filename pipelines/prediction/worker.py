"""Images in, mask files and manifest rows out: the same code in process and in every actor."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.params import CRFParams
from pipelines.prediction.inputs import Input, read_bytes
from pipelines.prediction.manifest import Row
from segcore.data.atomic import disk_errors
from segcore.errors import DataError, SegcoreError
from segcore.inference import visualize
from segcore.inference.images import ImageArray
from segcore.inference.predictor import Prediction, Predictor
from segcore.inference.spec import PackageSpec
from segcore.package import load_package

MASKS = "masks"
OVERLAYS = "overlays"


@dataclass(frozen=True)
class Job:
    """What every worker of a prediction knows; small, so that it travels to other nodes.

    Args:
        package: folder of the model package, reachable by every worker.
        digest: of the package.
        version: models:/name/version, or the folder that the user gave.
        spec: of the package.
        out: absolute folder for masks/, overlays/ and the manifest.
        base: folder that relative input paths start from; workers may run in another.
        overlays: also write overlays.
        batch_size: images that run through the model together.
        crf: of params.yaml; None for no dense CRF after the model.
    """

    package: Path
    digest: str
    version: str
    spec: PackageSpec
    out: Path
    base: Path
    overlays: bool
    batch_size: int
    crf: CRFParams | None = None

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
        )

    def is_written(self, item: Input) -> bool:
        """Whether the files of `item` are there; says nothing about which model wrote them."""
        return all((self.out / name).is_file() for name in self.files(item))

    def files(self, item: Input) -> list[str]:
        """Names of what is written for `item`, the mask first, relative to `out`."""
        overlay = [f"{OVERLAYS}/{item.name}.jpg"] if self.overlays else []
        return [f"{MASKS}/{item.name}.png", *overlay]


class Worker:
    """Predicts inputs one batch after the other; loads the model at the first that needs it."""

    def __init__(self, job: Job, device: str = "cpu") -> None:
        self._job = job
        self._device = device
        self._predictor: Predictor | None = None

    def __call__(self, items: Sequence[tuple[Input, Row | None]]) -> list[Row]:
        """One row per input, in order.

        Args:
            items: inputs with the row that an earlier run left, or None. Where its digests and
                files still hold, it is returned as it is.
        """
        rows: dict[int, Row] = {}
        images: dict[int, ImageArray] = {}
        for index, (item, known) in enumerate(items):
            start = time.perf_counter()
            row = self._job.row(item, "ok")
            try:
                data = read_bytes(item, self._job.base)
                row = replace(row, sha256=hashlib.sha256(data).hexdigest())
                if known is not None and self._holds(item, row, known):
                    rows[index] = known
                    continue
                images[index] = self._model().read(data)
            except SegcoreError as error:
                reason = str(error).removeprefix("image bytes ").removeprefix(f"{item.path}: ")
                row = replace(row, status="error", reason=reason)
            rows[index] = replace(row, seconds=time.perf_counter() - start)
        for index, prediction, seconds in self._predict(images):
            item, row = items[index][0], rows[index]
            if isinstance(prediction, str):
                rows[index] = replace(row, status="error", reason=prediction)
            else:
                rows[index] = self._write(item, row, images[index], prediction, seconds)
        return [rows[index] for index in range(len(items))]

    def _holds(self, item: Input, row: Row, known: Row) -> bool:
        return (
            known.status == "ok"
            and known.sha256 == row.sha256
            and (known.model_digest, known.crf) == (row.model_digest, row.crf)
            and known.mask_path == self._job.files(item)[0]
            and self._job.is_written(item)
        )

    def _model(self) -> Predictor:
        if self._predictor is None:
            self._predictor = load_package(self._job.package, device=self._device)
            self._predictor.crf = self._job.crf.build() if self._job.crf else None
        return self._predictor

    def _predict(self, images: dict[int, ImageArray]) -> list[tuple[int, Prediction | str, float]]:
        """Prediction or reason of failure per image, with its share of the time."""
        if not images:
            return []
        start = time.perf_counter()
        try:
            found = self._model()(list(images.values()), self._job.batch_size)
        except (RuntimeError, SegcoreError) as error:
            if len(images) == 1:
                return [(index, str(error).splitlines()[0], 0.0) for index in images]
            return [self._predict({index: image})[0] for index, image in images.items()]
        seconds = (time.perf_counter() - start) / len(found)
        return [(index, one, seconds) for index, one in zip(images, found, strict=True)]

    def _write(
        self, item: Input, row: Row, image: ImageArray, prediction: Prediction, seconds: float
    ) -> Row:
        start = time.perf_counter()
        spec, mask = self._job.spec, prediction.mask
        pictures = [visualize.palette_png(mask, spec.palette)]
        if self._job.overlays:
            pictures.append(visualize.overlay(image, mask, palette=spec.palette))
        try:
            for name, picture in zip(self._job.files(item), pictures, strict=True):
                _save(picture, self._job.out / name)
        except (DataError, OSError) as error:
            return replace(row, status="error", reason=str(error))
        shares = np.bincount(mask.ravel(), minlength=spec.num_classes) / mask.size
        return replace(
            row,
            mask_path=self._job.files(item)[0],
            height=prediction.height,
            width=prediction.width,
            class_shares={
                name: float(share)
                for name, share in zip(spec.classes, shares, strict=True)
                if share > 0
            },
            seconds=row.seconds + seconds + time.perf_counter() - start,
        )


def _save(picture: Image.Image, path: Path) -> None:
    """Write a picture that is whole or not there; not synced, which would cost more than it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            picture.save(part, quality=90)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
