"""Files of instance predictions: id maps, contours, and COCO's JSON for a whole job."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from segcore.errors import DataError
from segcore.inference.images import ImageArray
from segcore.inference.spec import PackageSpec
from segcore.tasks.coco import image_entry, write_document
from segcore.tasks.contours import polygons
from segcore.tasks.instance.predictor import InstancePrediction

COCO = "coco.json"
MOST_IDS = 2**16 - 1
OBJECT = pa.struct(
    [
        ("category", pa.int32()),
        ("score", pa.float32()),
        ("bbox", pa.list_(pa.float32())),
        ("area", pa.int64()),
        ("counts", pa.string()),
    ]
)
ROW_COLUMNS = (("objects", pa.list_(OBJECT)),)


def id_png(image: ImageArray, prediction: InstancePrediction, spec: PackageSpec) -> bytes:
    """A 16-bit PNG: 0 for none, else 1 + the place of an object in the manifest's row.

    Raises:
        DataError: there are more objects than 16 bits count.
    """
    if len(prediction) > MOST_IDS:
        raise DataError(
            f"{len(prediction)} objects on one image, a 16-bit map counts {MOST_IDS}: raise "
            "min_score, or cut the image"
        )
    buffer = io.BytesIO()
    Image.fromarray(prediction.id_map().astype(np.uint16)).save(buffer, "png")
    return buffer.getvalue()


def geojson(image: ImageArray, prediction: InstancePrediction, spec: PackageSpec) -> bytes:
    """Contours as a GeoJSON FeatureCollection in pixels of the image, y downwards."""
    rows = zip(
        prediction.detections.windows,
        prediction.classes.tolist(),
        prediction.scores.tolist(),
        strict=True,
    )
    features = [
        {
            "type": "Feature",
            "id": place,
            "properties": {"class": spec.classes[category], "score": round(score, 4)},
            "geometry": {"type": "MultiPolygon", "coordinates": polygons(mask, corner)},
        }
        for place, ((mask, corner), category, score) in enumerate(rows, start=1)
    ]
    document = {"type": "FeatureCollection", "features": features}
    return json.dumps(document, separators=(",", ":")).encode()


def row(prediction: InstancePrediction) -> dict[str, Any]:
    """What the manifest says of an image: `ROW_COLUMNS`."""
    rows = zip(
        prediction.classes.tolist(),
        prediction.scores.tolist(),
        prediction.boxes.tolist(),
        prediction.detections.windows,
        prediction.counts,
        strict=True,
    )
    objects = [
        {
            "category": category,
            "score": score,
            "bbox": [left, top, right - left, bottom - top],
            "area": int(mask.sum()),
            "counts": counts,
        }
        for category, score, (left, top, right, bottom), (mask, _), counts in rows
    ]
    return {"objects": objects}


def categories(spec: PackageSpec) -> list[dict[str, Any]]:
    """COCO's categories: the classes, by index; those that can be found, where things are named."""
    things = spec.things or (True,) * spec.num_classes
    return [
        {"id": index, "name": name}
        for index, (name, thing) in enumerate(zip(spec.classes, things, strict=True))
        if thing
    ]


def write_coco(out: Path, rows: Iterable[Mapping[str, Any]], spec: PackageSpec) -> None:
    """coco.json of a job: images, categories and annotations (RLE with scores), as rows come.

    `COCO(file)` opens it; its "annotations" are what `loadRes` takes.

    Raises:
        DataError: it cannot be written.
    """
    images: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for entry in rows:
            if entry.get("objects") is None:
                continue
            images.append(image_entry(len(images) + 1, entry))
            size = [entry["height"], entry["width"]]
            for one in entry["objects"]:
                number += 1
                yield {
                    "id": number,
                    "image_id": len(images),
                    "category_id": one["category"],
                    "segmentation": {"size": size, "counts": one["counts"]},
                    "bbox": [round(value, 2) for value in one["bbox"]],
                    "area": one["area"],
                    "iscrowd": 0,
                    "score": round(one["score"], 5),
                }

    write_document(
        out / COCO,
        {"categories": categories(spec), "annotations": annotations(), "images": images},
    )


def pad(values: Sequence[Any], shape: tuple[int, ...], dtype: type) -> Any:
    """Arrays [n, ...] of unlike lengths as one [N, longest, ...], filled up with zeros."""
    longest = max((len(value) for value in values), default=0)
    joined: Any = np.zeros((len(values), longest, *shape), dtype=dtype)
    for place, value in zip(joined, values, strict=True):
        place[: len(value)] = value
    return joined
