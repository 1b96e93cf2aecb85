"""Renders the dataset to files: in parallel, every file whole or absent, and resumable."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segcore.data.pool import count_workers, worker_pool
from segcore.data.sample import SPLITS, Instance
from segcore.datasets.base import Progress
from segcore.datasets.streets.compose import compose
from segcore.datasets.streets.render import Picture, render
from segcore.datasets.streets.scene import PALETTE
from segcore.errors import DataError, OptionError
from segcore.inference import rle

VERSION = "1"
PLAN = "streets.json"
STARTED = "streets.started.json"
FEW = 12
SIZES = (32, 4096)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be rendered; the pictures are a pure function of it and of VERSION."""

    seed: int = 0
    num_train: int = 320
    num_val: int = 48
    num_test: int = 96
    num_unlabelled: int = 0
    height: int = 128
    width: int = 192

    @classmethod
    def of(cls, options: Mapping[str, Any], *, seed: int) -> "Plan":
        """Check the user's options.

        Raises:
            OptionError: an option is unknown or out of range.
        """
        known = [field.name for field in fields(cls) if field.name != "seed"]
        for name, value in options.items():
            if name not in known:
                raise OptionError(f"streets has no option {name!r}. Known: {', '.join(known)}")
            low, high = SIZES if name in ("height", "width") else (0, 10**6)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise OptionError(
                    f"streets option {name} is {value!r}: give a whole number in {low}..{high}"
                )
        if seed < 0:
            raise OptionError(f"streets seed is {seed}: give a whole number of at least 0")
        return cls(seed=seed, **options)

    def ids(self, split: str) -> list[str]:
        """Names of a split's samples, unique in the dataset."""
        return [f"{split}_{index:05d}" for index in range(getattr(self, f"num_{split}"))]

    def text(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class _Job:
    """One sample to render."""

    raw: Path
    plan: Plan
    split: str
    index: int

    def path(self, kind: str, suffix: str) -> Path:
        return self.raw / kind / self.split / f"{self.split}_{self.index:05d}{suffix}"


def fill(raw: Path, plan: Plan, progress: Progress) -> None:
    """Render every sample of the plan that is not there yet, then write `streets.json`.

    Raises:
        DataError: the folder cannot be written, or a worker process was killed.
    """
    try:
        if _read(raw / PLAN) == plan.text():
            return
        if _read(raw / STARTED) != plan.text():
            _clear(raw)
            _write(raw / STARTED, plan.text().encode())
        _render_all(raw, plan, progress)
        for split in SPLITS:
            _gather(raw, plan, split)
        shutil.rmtree(raw / "parts", ignore_errors=True)
        _write(raw / PLAN, plan.text().encode())
        (raw / STARTED).unlink()
    except OSError as error:
        raise DataError(
            f"streets cannot be rendered into {raw}: {error}; free some space or choose"
            " another folder, then run again: what is finished is kept"
        ) from error


def read_instances(raw: Path, plan: Plan, split: str) -> dict[str, tuple[Instance, ...]]:
    """Objects of a split's samples by id.

    Raises:
        DataError: the dataset was not rendered, or for other options.
    """
    if _read(raw / PLAN) != plan.text():
        raise DataError(f"{raw} does not hold the streets asked for: download (render) them first")
    found = json.loads((raw / "instances" / f"{split}.json").read_text())
    return {
        name: tuple(Instance(**{**item, "bbox": tuple(item["bbox"])}) for item in items)
        for name, items in found.items()
    }


def _render_all(raw: Path, plan: Plan, progress: Progress) -> None:
    """Render the missing samples, in worker processes where there are more than a few."""
    for split in SPLITS:
        for kind in ("images", "masks", "parts"):
            (raw / kind / split).mkdir(parents=True, exist_ok=True)
    jobs = [
        _Job(raw, plan, split, index) for split in SPLITS for index in range(len(plan.ids(split)))
    ]
    missing = [job for job in jobs if not job.path("parts", ".json").exists()]
    done = len(jobs) - len(missing)
    progress("render streets", done, len(jobs))
    for _ in _run(missing):
        done += 1
        progress("render streets", done, len(jobs))


def _run(jobs: list[_Job]) -> Iterator[None]:
    """Render jobs in worker processes, or here where there are few."""
    with worker_pool(count_workers(len(jobs), None, per_worker=FEW)) as pool:
        if pool is None:
            yield from map(_render_one, jobs)
        else:
            yield from pool.map(_render_one, jobs, chunksize=4)


def _render_one(job: _Job) -> None:
    """Write image, mask, and last the objects, whose presence says that the sample is done."""
    plan = job.plan
    picture = render(compose(plan.seed, job.split, job.index), plan.height, plan.width)
    _save_png(Image.fromarray(picture.image), job.path("images", ".png"))
    if job.split != "unlabelled":
        mask = Image.fromarray(picture.classes)
        mask.putpalette([channel for colour in PALETTE for channel in colour])
        _save_png(mask, job.path("masks", ".png"))
    objects = [] if job.split == "unlabelled" else instances_of(picture)
    _write(job.path("parts", ".json"), json.dumps([asdict(item) for item in objects]).encode())


def instances_of(picture: Picture) -> list[Instance]:
    """Describe a picture's objects as COCO does."""
    objects = []
    for number, category in enumerate(picture.categories, start=1):
        mask = picture.instances == number
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = float(xs[0]), float(ys[0])
        box = (x, y, float(xs[-1]) + 1 - x, float(ys[-1]) + 1 - y)
        objects.append(Instance(category, box, float(mask.sum()), rle.encode(mask)))
    return objects


def _gather(raw: Path, plan: Plan, split: str) -> None:
    """Join the objects of a split's samples in one file."""
    parts = {
        name: json.loads((raw / "parts" / split / f"{name}.json").read_text())
        for name in plan.ids(split)
        if split != "unlabelled"
    }
    (raw / "instances").mkdir(exist_ok=True)
    _write(raw / "instances" / f"{split}.json", json.dumps(parts).encode())


def _clear(raw: Path) -> None:
    """Remove what an earlier plan left; nothing else in the folder is touched."""
    for name in (PLAN, STARTED):
        (raw / name).unlink(missing_ok=True)
    for name in ("images", "masks", "instances", "parts"):
        shutil.rmtree(raw / name, ignore_errors=True)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _save_png(image: Image.Image, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    image.save(temporary, format="PNG")
    temporary.replace(path)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
