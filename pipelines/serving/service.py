"""What a server answers about a picture, free of HTTP."""

import base64
import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.prediction import manifest, png_facts
from pipelines.prediction.files import encode
from pipelines.prediction.inputs import Input
from pipelines.prediction.job import Job
from segcore.errors import DataError, SegcoreError
from segcore.inference.images import NPY, ImageArray, count_megapixels, file_format
from segcore.inference.visualize import as_rgb
from segcore.tasks.kind import OVERLAYS

# Decoders that read pixels and nothing else: Pillow hands PostScript to another program.
FORMATS = frozenset(
    {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP", NPY}
)
VIEW_PX = 1600  # longest side of what the page shows
WARM_UP = (64, 64)


class TooLargeError(SegcoreError):
    """A picture has more pixels than the server takes, or than fit in its memory."""


@dataclass(frozen=True)
class Answer:
    """A prediction as it is asked for.

    Args:
        facts: height, width, seconds, model, and what the manifest of predict says.
        image: as the model saw it.
        prediction: of the model's kind of task.
        row: of the manifest.
    """

    facts: Mapping[str, Any]
    image: ImageArray
    prediction: Any
    row: manifest.Row


class Service:
    """One model in memory; requests of several threads run through it one after another.

    A pass of the model takes every core, and not every engine may be entered twice; decoding and
    encoding overlap with it.

    Args:
        job: the model and how it is used (`pipelines.prediction.job.make_job`).
        device: where it runs.

    Raises:
        PackageError: the model cannot be loaded.
    """

    def __init__(self, job: Job, device: str) -> None:
        self.job = job
        self.device = device
        self._predictor = job.load(device)
        self._one = Lock()
        self._run(np.zeros((*WARM_UP, job.spec.in_channels), np.uint8))

    def facts(self) -> dict[str, Any]:
        """What the model is: JSON values."""
        job, spec = self.job, self.job.spec
        facts = {
            "model": job.version,
            "digest": job.digest,
            "architecture": spec.architecture,
            "task": spec.task,
            "classes": list(spec.classes),
            "palette": [list(color) for color in spec.palette],
            "in_channels": spec.in_channels,
            "dataset": spec.dataset_name,
            "dataset_digest": spec.dataset_digest,
            "run_id": job.run_id,
            "commit": job.commit,
            "metrics": spec.to_json()["metrics"],
            "engine": job.engine,
            "device": self.device,
            "precision": self._predictor.precision,
            "max_megapixels": job.max_megapixels,
        }
        return {key: value for key, value in facts.items() if value not in ("", None)}

    def predict(self, data: bytes) -> Answer:
        """Predict an image file.

        Raises:
            TooLargeError: it has too many pixels.
            DataError, ShapeError: it is no image that the model takes.
        """
        start = time.perf_counter()
        image = self._decode(data)
        prediction = self._run(image)
        kind, spec = self.job.kind, self.job.spec
        row = self.job.row(Input("", ""), "ok")
        row = replace(row, sha256=hashlib.sha256(data).hexdigest())
        facts = {
            "height": prediction.height,
            "width": prediction.width,
            "seconds": round(time.perf_counter() - start, 4),
            "model": self.job.version,
            "digest": self.job.digest,
            "classes": list(spec.classes),
            **_plain(kind.row(prediction, spec), dict(kind.row_columns)),
        }
        return Answer(facts, image, prediction, row)

    def png(self, data: bytes) -> bytes:
        """The main file that predict writes for an image file, with the facts of its making."""
        answer, output = self.predict(data), self.job.outputs[0]
        name = output.path("image")
        content = encode(output.make(answer.image, answer.prediction, self.job.spec), name)
        if png_facts.is_png(content):
            return png_facts.embed(content, manifest.made_of(answer.row))
        return content

    def view(self, data: bytes) -> dict[str, Any]:
        """What the page shows of an image file: picture and overlay as data URLs, and a legend."""
        answer = self.predict(data)
        kind, spec = self.job.kind, self.job.spec
        overlay = kind.overlay(answer.image, answer.prediction, spec)
        return {
            **answer.facts,
            "picture": _data_url(Image.fromarray(as_rgb(answer.image))),
            OVERLAYS: _data_url(overlay.convert("RGB")),
            "legend": [
                {"name": line.name, "color": list(line.color), "detail": line.detail}
                for line in kind.shown(answer.prediction, spec)
            ],
        }

    def _decode(self, data: bytes) -> ImageArray:
        """Pixels of a file of a format that a server may decode.

        Raises:
            TooLargeError: it has too many pixels.
            DataError, ShapeError: it is no image that the model takes.
        """
        megapixels = count_megapixels(data)
        if megapixels > self.job.max_megapixels:
            raise TooLargeError(
                f"the picture has {megapixels:.4g} megapixels, the limit is "
                f"{self.job.max_megapixels:g}: send a smaller one"
            )
        if file_format(data) not in FORMATS:
            raise DataError(
                "this is no picture: send a file of one of the formats "
                f"{', '.join(sorted(FORMATS))}"
            )
        try:
            return self._predictor.read(data)
        except MemoryError as error:
            raise TooLargeError("the picture does not fit in memory: send a smaller one") from error
        except SegcoreError as error:
            raise type(error)(str(error).removeprefix("image bytes: ")) from error

    def _run(self, image: ImageArray) -> Any:
        try:
            with self._one:
                return self._predictor([image], 1)[0]
        except MemoryError as error:
            raise TooLargeError("the picture does not fit in memory: send a smaller one") from error


def _plain(row: Mapping[str, Any], columns: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """What the manifest says of an image as JSON values."""
    return {
        name: dict(value) if pa.types.is_map(columns[name]) else value
        for name, value in row.items()
    }


def _data_url(picture: Image.Image) -> str:
    picture.thumbnail((VIEW_PX, VIEW_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
