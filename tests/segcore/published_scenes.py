"""Miniatures of published datasets, written in the layouts that their publishers give out."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from segcore.datasets.palette import bit_palette

SIZE = (24, 32)
CITIES = ("aachen", "bremen", "ulm")


def rng_of(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    return save(
        path, rng_of(f"{path.parent.name}/{path.name}").integers(0, 256, (*size, 3), dtype=np.uint8)
    )


def lines(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def objects_of(name: str) -> tuple[np.ndarray, list[int]]:
    """Id map of three objects and their classes, 1..20; the second is cut in two by the third."""
    ids = np.zeros(SIZE, np.uint8)
    shift = int(rng_of(name).integers(0, 4))
    ids[2:7, 3 + shift : 9 + shift], ids[10:20, 5:25], ids[8:22, 12:15] = 1, 2, 3
    return ids, [int(c) for c in rng_of(name + "c").integers(1, 21, 3)]


def by_id(ids: np.ndarray, values: list[int]) -> np.ndarray:
    return np.array([0, *values], np.uint8)[ids]


def with_border(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """VOC's void: where the neighbour above or to the left is another object."""
    border = np.zeros(ids.shape, bool)
    border[1:] |= ids[1:] != ids[:-1]
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    return np.where(border, np.uint8(255), values)


def save_palette(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    image.putpalette([channel for color in bit_palette(256) for channel in color])
    image.save(path)


def write_voc(root: Path, train: list[str], val: list[str], unlabelled: list[str]) -> None:
    """VOCdevkit/VOC2012 with two lists, and pictures that no list of segmentation names."""
    folder = root / "VOCdevkit" / "VOC2012"
    for name in (*train, *val):
        ids, classes = objects_of(name)
        save_palette(
            folder / f"SegmentationClass/{name}.png", with_border(ids, by_id(ids, classes))
        )
        save_palette(folder / f"SegmentationObject/{name}.png", with_border(ids, ids))
    for name in (*train, *val, *unlabelled):
        picture(folder / f"JPEGImages/{name}.jpg")
    lines(folder / "ImageSets/Segmentation/train.txt", train)
    lines(folder / "ImageSets/Segmentation/val.txt", val)


def write_sbd(folder: Path, train: list[str], val: list[str]) -> None:
    """img, cls and inst as MATLAB structs, with boundaries as sparse cells."""
    for name in (*train, *val):
        ids, classes = objects_of(name)
        picture(folder / f"img/{name}.jpg")
        edges = np.empty((20, 1), object)
        for index in range(20):
            edges[index, 0] = csc_matrix(by_id(ids, classes) == index + 1)
        present = np.unique(classes).astype(np.uint8)[:, None]
        cls = {"Boundaries": edges, "Segmentation": by_id(ids, classes),
               "CategoriesPresent": present}  # fmt: skip
        categories = np.array(classes, np.uint8)[:, None]
        inst = {"Boundaries": edges[:3], "Segmentation": ids, "Categories": categories}
        for kind, name_of, content in (("cls", "GTcls", cls), ("inst", "GTinst", inst)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            savemat(folder / kind / f"{name}.mat", {name_of: content}, do_compression=True)
    lines(folder / "train.txt", train)
    lines(folder / "val.txt", val)


def write_nyu(root: Path) -> None:
    """nyud/: pictures, maps of 0..40 as doubles, and three lists of numbers."""
    folder = root / "nyud"
    (folder / "segmentation").mkdir(parents=True)
    for split, numbers in (("train", [5001, 5003]), ("val", [5002]), ("test", [6001])):
        lines(folder / f"{split}.txt", [str(number) for number in numbers])
        for number in numbers:
            picture(folder / f"data/images/img_{number}.png")
            labels = rng_of(str(number)).integers(0, 41, SIZE).astype(np.float64)
            savemat(folder / f"segmentation/img_{number}.mat", {"segmentation": labels})


def cityscapes_ids(name: str) -> np.ndarray:
    """Instance ids of a street: stuff, void, two cars that touch, a caravan, a group of people."""
    ids = np.full(SIZE, 23, np.uint16)  # sky
    ids[12:] = 7  # road
    ids[:, :2] = 3  # out of roi
    ids[4:8, 4:10], ids[4:8, 10:16] = 26000, 26001
    ids[14:18, 6 : 9 + int(rng_of(name).integers(0, 3))] = 29000
    ids[14:20, 20:26] = 24  # a group
    ids[14:20, 27:29] = 24000
    return ids


def write_cityscapes(root: Path, truth: str = "gtFine") -> None:
    """leftImg8bit and ground truth by split and city, in all four forms."""
    for split, cities in (("train", CITIES), ("val", ("frankfurt",))):
        for city in cities:
            for frame in (19, 38):
                name = f"{city}_000000_{frame:06d}"
                picture(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
                ids = cityscapes_ids(name)
                labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
                stem = root / truth / split / city / f"{name}_{truth}"
                save(stem.with_name(f"{stem.name}_labelIds.png"), labels)
                save(stem.with_name(f"{stem.name}_instanceIds.png"), ids)
                save(stem.with_name(f"{stem.name}_color.png"), np.stack([labels] * 3, -1))
                content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": []}
                stem.with_name(f"{stem.name}_polygons.json").write_text(json.dumps(content))


def write_sunrgbd(root: Path) -> None:
    """Images numbered by set, labels numbered through: those of the test set come first."""
    from segcore.datasets.sunrgbd import FIRST, FOLDERS, LABELS

    for split, folder in FOLDERS.items():
        for number in (1, 2, 60):
            picture(root / folder / f"img-{number:06d}.jpg")
            label = rng_of(f"{split}{number}").integers(0, 38, SIZE, dtype=np.uint8)
            save(root / LABELS / f"img-{FIRST[split] + number:06d}.png", label)


def write_ade(root: Path) -> None:
    """ADEChallengeData2016: 0 for other, 1..150."""
    folder = root / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for number in range(1, 4):
            name = f"ADE_{short}_{number:08d}"
            picture(folder / f"images/{split}/{name}.jpg")
            labels = rng_of(name).integers(0, 151, SIZE, dtype=np.uint8)
            save(folder / f"annotations/{split}/{name}.png", labels)


def write_pets(root: Path) -> None:
    """oxford-iiit-pet: trimaps of 1 (pet), 2 (background), 3 (border)."""
    folder = root / "oxford-iiit-pet"
    pets = {
        "trainval": ["Abyssinian_1 1 1 1", "american_bulldog_7 2 2 1", "Bengal_3 6 1 2"],
        "test": ["yorkshire_terrier_9 37 2 25"],
    }
    for split, entries in pets.items():
        lines(folder / f"annotations/{split}.txt", entries)
        for entry in entries:
            name = entry.split()[0]
            picture(folder / f"images/{name}.jpg")
            trimap = np.full(SIZE, 2, np.uint8)
            trimap[4:16, 6:20], trimap[6:14, 8:18] = 3, 1
            save(folder / f"annotations/trimaps/{name}.png", trimap)


def write_jsrt(root: Path) -> None:
    """Raw words of 12 bits, big-endian, and GIF masks by fold; odd numbers are in the first."""
    from segcore.datasets.jsrt import PARTS

    boxes = {
        "right lung": (slice(200, 800), slice(100, 450)),
        "left lung": (slice(200, 800), slice(570, 900)),
        "heart": (slice(500, 800), slice(420, 600)),
        "right clavicle": (slice(180, 240), slice(120, 460)),
        "left clavicle": (slice(180, 240), slice(560, 880)),
    }
    for number, name in enumerate(("JPCLN001", "JPCLN002", "JPCNN003", "JPCNN004"), start=1):
        film = rng_of(name).integers(0, 4096, (32, 32)).repeat(64, 0).repeat(64, 1)
        (root / "All247images").mkdir(parents=True, exist_ok=True)
        film.astype(">u2").tofile(root / f"All247images/{name}.IMG")
        for part in PARTS:
            mask = np.zeros((1024, 1024), np.uint8)
            mask[boxes[part]] = 255
            fold = 1 if number % 2 else 2
            save(root / f"scratch/fold{fold}/masks/{part}/{name}.gif", mask)


def coco_ids(name: str) -> dict[int, np.ndarray]:
    """Category -> mask of three objects of an image, of which one is a crowd: 1, 18 and 90."""
    ids, _ = objects_of(name)
    return {category: ids == place for place, category in enumerate((1, 18, 90), start=1)}


def write_coco(root: Path) -> None:
    """Images, objects (polygon, run lengths, a crowd), panoptic PNGs and stuff-and-thing maps."""
    from segcore.datasets.coco2017_classes import PANOPTIC_STUFF, THINGS

    for split, numbers in (("train", (9, 25, 30)), ("val", (139,))):
        content: dict[str, list[Any]] = {"images": [], "annotations": []}
        panoptic: dict[str, list[Any]] = {"images": [], "annotations": []}
        for number in numbers:
            name = f"{number:012d}"
            picture(root / f"{split}2017/{name}.jpg")
            entry = {"id": number, "file_name": f"{name}.jpg", "height": 24, "width": 32}
            content["images"].append(entry)
            panoptic["images"].append(entry)
            content["annotations"] += _annotations(name, number)
            panoptic["annotations"].append(_panoptic(root, split, name, number))
            stuff = np.full(SIZE, 156, np.uint8)  # sky-other, id 157
            stuff[20:], stuff[:, 30:] = 123, 255
            for category, mask in coco_ids(name).items():
                stuff[mask] = category - 1
            save(root / f"stuffthingmaps/{split}2017/{name}.png", stuff)
        things = [{"id": n, "name": name, "isthing": 1} for n, name in THINGS.items()]
        stuff_list = [{"id": n, "name": name, "isthing": 0} for n, name in PANOPTIC_STUFF.items()]
        (root / "annotations").mkdir(exist_ok=True)
        for kind, listed, known in (
            ("instances", content, things),
            ("panoptic", panoptic, [*things, *stuff_list]),
        ):
            text = json.dumps({**listed, "categories": known})
            (root / f"annotations/{kind}_{split}2017.json").write_text(text)


def _annotations(name: str, image: int) -> list[dict[str, Any]]:
    """The first object as a polygon, the others as run lengths; the last is a crowd."""
    annotations = []
    for place, (category, mask) in enumerate(coco_ids(name).items()):
        rows, columns = np.nonzero(mask)
        x0, y0, x1, y1 = (
            int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        )
        runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.ravel(order="F"), 2])))
        first = [] if not mask[0, 0] else [0]
        shape: Any = {"counts": [*first, *runs.tolist()], "size": list(SIZE)}
        if place == 0:
            shape = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        annotations.append(
            {
                "id": image * 10 + place,
                "image_id": image,
                "category_id": category,
                "iscrowd": int(place == 2),
                "segmentation": shape,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()),
            }
        )
    return annotations


def _panoptic(root: Path, split: str, name: str, image: int) -> dict[str, Any]:
    """PNG of R + 256 G + 65536 B; sky, the things, void at the right."""
    numbers = np.full(SIZE, 7_000_000, np.int64)
    segments = [{"id": 7_000_000, "category_id": 187, "iscrowd": 0}]
    for place, (category, mask) in enumerate(coco_ids(name).items(), start=1):
        numbers[mask] = 70_000 * place + 3
        segments.append(
            {"id": 70_000 * place + 3, "category_id": category, "iscrowd": int(place == 3)}
        )
    numbers[:, 30:] = 0
    png = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1)
    save(root / f"annotations/panoptic_{split}2017/{name}.png", png.astype(np.uint8))
    return {"image_id": image, "file_name": f"{name}.png", "segments_info": segments}
