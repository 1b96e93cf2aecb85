"""Files of semantic predictions: masks, probabilities, contours, and COCO's JSON of a job."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from segcore.errors import OptionError
from segcore.inference import rle, visualize
from segcore.inference.images import ImageArray
from segcore.inference.predictor import Prediction
from segcore.inference.spec import PackageSpec
from segcore.tasks.coco import image_entry, write_document
from segcore.tasks.contours import polygons

CONFIDENCE = "confidence"
PROBABILITIES = "probabilities"
CONTOURS = "contours"
COCO = "coco"
SEGMENTS = "segments"
STRIP_PIXELS = 1 << 20
SEGMENT = pa.struct(
    [
        ("category", pa.int32()),
        ("bbox", pa.list_(pa.int32())),
        ("area", pa.int64()),
        ("counts", pa.string()),
    ]
)
SEGMENT_COLUMNS = ((SEGMENTS, pa.list_(SEGMENT)),)


def mask_png(image: ImageArray, prediction: Prediction, spec: PackageSpec) -> Image.Image:
    """Class indices, with the palette."""
    return visualize.palette_png(prediction.mask, spec.palette)


def confidence_png(image: ImageArray, prediction: Prediction, spec: PackageSpec) -> Image.Image:
    """The probability of the class that was predicted, times 255."""
    return Image.fromarray(np.rint(_kept(prediction, CONFIDENCE) * 255).astype(np.uint8))


def probabilities_npy(image: ImageArray, prediction: Prediction, spec: PackageSpec) -> bytes:
    """The probability of every class, float16 [K, H, W], as `numpy.load` reads it."""
    buffer = io.BytesIO()
    np.save(buffer, _kept(prediction, PROBABILITIES), allow_pickle=False)
    return buffer.getvalue()


def _kept(prediction: Prediction, name: str) -> Any:
    value = getattr(prediction, name)
    if value is None:
        raise OptionError(f"this prediction has no {name}: make the predictor with {name}=True")
    return value


def geojson(image: ImageArray, prediction: Prediction, spec: PackageSpec) -> bytes:
    """The regions of each class as a GeoJSON FeatureCollection, in pixels, y downwards."""
    features = [
        {
            "type": "Feature",
            "properties": {"class": name},
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": polygons(prediction.mask == number),
            },
        }
        for number, name in enumerate(spec.classes)
        if (prediction.mask == number).any()
    ]
    document = {"type": "FeatureCollection", "features": features}
    return json.dumps(document, separators=(",", ":")).encode()


def shares(mask: visualize.Mask, classes: Sequence[str]) -> list[tuple[str, float]]:
    """Share of each class that occurs; strip by strip, as counting copies to 64 bits."""
    rows = max(1, STRIP_PIXELS // mask.shape[1])
    counts = np.zeros(len(classes), np.int64)
    for top in range(0, len(mask), rows):
        counts += np.bincount(mask[top : top + rows].ravel(), minlength=len(classes))
    shares = zip(classes, counts / mask.size, strict=True)
    return sorted((name, float(share)) for name, share in shares if share > 0)


def segments(mask: visualize.Mask) -> list[dict[str, Any]]:
    """Category, box [left, top, width, height], area and run lengths of each class there is."""
    found = []
    for category in np.flatnonzero(np.bincount(mask.ravel())).tolist():
        inside = mask == category
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        window = inside[top:bottom, left:right]
        found.append(
            {
                "category": category,
                "bbox": [int(left), int(top), int(right - left), int(bottom - top)],
                "area": int(window.sum()),
                "counts": rle.encode_window(window, (int(top), int(left)), mask.shape),
            }
        )
    return found


def write_coco(out: Path, rows: Iterable[Mapping[str, Any]], spec: PackageSpec) -> None:
    """coco.json of a job as COCO's stuff has it: an annotation a class of an image, as RLE.

    Category ids are class indices. `COCO(file)` opens it.

    Raises:
        DataError: it cannot be written.
    """
    images: list[dict[str, Any]] = []
    categories = [{"id": index, "name": name} for index, name in enumerate(spec.classes)]

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for entry in rows:
            if entry.get(SEGMENTS) is None:
                continue
            images.append(image_entry(len(images) + 1, entry))
            for one in entry[SEGMENTS]:
                number += 1
                yield {
                    "id": number,
                    "image_id": len(images),
                    "category_id": one["category"],
                    "segmentation": {
                        "size": [entry["height"], entry["width"]],
                        "counts": one["counts"],
                    },
                    "bbox": one["bbox"],
                    "area": one["area"],
                    "iscrowd": 0,
                }

    write_document(
        out / f"{COCO}.json",
        {"categories": categories, "annotations": annotations(), "images": images},
    )
