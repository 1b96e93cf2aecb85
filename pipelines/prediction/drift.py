"""Whether the pictures of a job look like those that the model was trained on."""

import heapq
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.prediction.manifest import Row
from segcore.data.atomic import write_file
from segcore.inference.spec import PackageSpec

FILE = "drift.json"
FARTHEST = 20
LEAST_RANGE = 0.05  # of intensities in 0..1: training pictures that are all alike bound nothing
FAR = 0.1  # ranges beyond the range of the training pictures
WORDS = {"means": ("darker", "brighter"), "stds": ("flatter", "richer in contrast")}


@dataclass(frozen=True)
class Far:
    """A picture outside of the range of the training pictures.

    Args:
        path: of the input.
        distance: how far outside, in widths of that range, of its worst statistic.
        why: which that is, with its value and the range.
    """

    path: str
    distance: float
    why: str


@dataclass(frozen=True)
class Drift:
    """A job beside the training set.

    Args:
        pictures: that were compared.
        far: how many lie outside the range that 98 % of the training pictures have, in mean or
            standard deviation of a channel, by more than a tenth of that range.
        class_shares: name -> [training, here], shares of the pixels; empty where predictions of
            this kind have none.
        class_distance: half the sum of their differences, 0 alike to 1; null likewise.
        farthest: of the far ones, the farthest first.
    """

    pictures: int
    far: int
    class_shares: dict[str, list[float]]
    class_distance: float | None
    farthest: list[Far]

    def __str__(self) -> str:
        text = f"drift: {self.far} of {self.pictures} pictures are unlike the training pictures"
        if self.farthest:
            text += f", most of all {self.farthest[0].path} ({self.farthest[0].why})"
        if self.class_distance is not None:
            name = max(self.class_shares, key=lambda key: abs(_change(self.class_shares[key])))
            before, here = self.class_shares[name]
            text += f"; class shares differ by {self.class_distance:.2f}"
            text += f" ({name} {before:.1%} in training, {here:.1%} here)"
        return text


def compare(rows: Iterable[Row], spec: PackageSpec) -> Drift | None:
    """The results of a job beside what the package says of its training set.

    Returns:
        None where the package, which may be older, does not say it, or nothing was predicted.
    """
    training = spec.extra.get("training")
    if not training:
        return None
    pictures, far, total = 0, 0, 0
    pixels = dict.fromkeys(training["class_shares"], 0.0)
    farthest: list[tuple[float, int, Far]] = []
    for row in rows:
        if row.status != "ok" or not row.channel_means:
            continue
        pictures += 1
        found = _farness(row, training)
        if found.distance > FAR:
            far += 1
            entry = (found.distance, -far, found)  # of two alike, the first
            push = heapq.heappush if len(farthest) < FARTHEST else heapq.heappushpop
            push(farthest, entry)
        if "class_shares" in row.facts:
            total += row.height * row.width
            for name, share in row.class_shares.items():
                pixels[name] = pixels.get(name, 0.0) + share * row.height * row.width
    if not pictures:
        return None
    shares = _beside(training["class_shares"], pixels, total)
    distance = sum(abs(_change(pair)) for pair in shares.values()) / 2 if shares else None
    shown = [found for _, _, found in sorted(farthest, reverse=True)]
    return Drift(pictures, far, shares, distance, shown)


def write(drift: Drift, out: Path) -> None:
    """Leave it beside the manifest.

    Raises:
        DataError: it cannot be written.
    """
    write_file(out / FILE, json.dumps(asdict(drift), indent=1).encode() + b"\n")


def _farness(row: Row, training: Mapping[str, Any]) -> Far:
    """The statistic of a picture that lies farthest outside; distance 0 where none does."""
    worst = Far(row.path, 0.0, "")
    for name, values in (("means", row.channel_means), ("stds", row.channel_stds)):
        low, high = training[name]["p1"], training[name]["p99"]
        for channel, (value, least, most) in enumerate(zip(values, low, high, strict=False)):
            beyond = max(least - value, value - most, 0.0) / max(most - least, LEAST_RANGE)
            if beyond > worst.distance:
                word = WORDS[name][value > most]
                of = f" in channel {channel}" if len(values) > 1 else ""
                why = f"{word}{of}: {value:.3f}, training {least:.3f} to {most:.3f}"
                worst = Far(row.path, beyond, why)
    return worst


def _beside(
    training: Mapping[str, float], pixels: Mapping[str, float], total: int
) -> dict[str, list[float]]:
    """[training, here] of each class, here over all pixels of the job; empty if there are none."""
    if not total:
        return {}
    return {name: [training.get(name, 0.0), count / total] for name, count in pixels.items()}


def _change(pair: list[float]) -> float:
    before, here = pair
    return here - before if math.isfinite(here - before) else 0.0
