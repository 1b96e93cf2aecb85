"""Files of panoptic predictions: COCO's panoptic PNG and JSON."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from segcore.inference.images import ImageArray
from segcore.inference.spec import PackageSpec
from segcore.tasks.coco import image_entry, write_document
from segcore.tasks.panoptic.segments import Panoptic

COCO = "panoptic.json"
FOLDER = "panoptic"
SEGMENT = pa.struct(
    [
        ("id", pa.int32()),
        ("category", pa.int32()),
        ("isthing", pa.bool_()),
        ("score", pa.float32()),
        ("bbox", pa.list_(pa.int32())),
        ("area", pa.int64()),
    ]
)
ROW_COLUMNS = (("segments", pa.list_(SEGMENT)),)


def png(image: ImageArray, prediction: Panoptic, spec: PackageSpec) -> Image.Image:
    """Ids as colours: id = R + 256 G + 256^2 B, 0 for none."""
    shifts = np.array([0, 8, 16])
    return Image.fromarray((prediction.ids[..., None] >> shifts & 255).astype(np.uint8))


def row(prediction: Panoptic) -> dict[str, Any]:
    """What the manifest says of an image: `ROW_COLUMNS`."""
    segments = []
    for one, (rows, columns) in zip(prediction.segments, prediction.windows, strict=True):
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        segments.append(
            {
                "id": one.id,
                "category": one.category,
                "isthing": one.isthing,
                "score": one.score,
                "bbox": box,
                "area": one.area,
            }
        )
    return {"segments": segments}


def write_coco(out: Path, rows: Iterable[Mapping[str, Any]], spec: PackageSpec) -> None:
    """panoptic.json of a job: images, categories and annotations, as rows come.

    Raises:
        DataError: it cannot be written.
    """
    images: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        for entry in rows:
            if entry.get("segments") is None:
                continue
            images.append(image_entry(len(images) + 1, entry))
            infos = [
                {
                    "id": one["id"],
                    "category_id": one["category"],
                    "area": one["area"],
                    "bbox": one["bbox"],
                    "iscrowd": 0,
                }
                for one in entry["segments"]
            ]
            name = Path(entry["mask_path"]).relative_to(FOLDER).as_posix()
            yield {"image_id": len(images), "file_name": name, "segments_info": infos}

    facts = zip(spec.classes, spec.palette, spec.things, strict=True)
    categories = [
        {"id": index, "name": name, "isthing": int(thing), "color": list(color)}
        for index, (name, color, thing) in enumerate(facts)
    ]
    parts = {"categories": categories, "annotations": annotations(), "images": images}
    write_document(out / COCO, parts)
