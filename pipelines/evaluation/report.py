"""The files of the evaluate stage: figures for DVC, per-image matrices, pictures, one page."""

import base64
import csv
import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipelines.evaluation import charts
from pipelines.evaluation.bootstrap import Comparison, Matrices, Verdict
from pipelines.params import PromoteParams
from pipelines.tracking.registry import Version
from segcore.data.atomic import write_file
from segcore.data.shards import ShardedDataset
from segcore.inference import visualize
from segcore.inference.predictor import Predictor
from segcore.metrics import Scores, scores

TEMPLATES = Path(__file__).with_name("templates")
SHOWN = 3
PANEL_PX = 240
PLOT_ROWS = 1000
KINDS = ("best", "median", "worst")


@dataclass(frozen=True)
class Evaluation:
    """A version's result on every labelled test image.

    Args:
        version: of the registry.
        predictor: its model.
        matrices: confusion matrices [B, K, K], rows the true class.
        ids: of the images, in the same order.
    """

    version: Version
    predictor: Predictor
    matrices: Matrices
    ids: list[str]

    @cached_property
    def scores(self) -> Scores:
        """Figures of the whole split."""
        return scores(self.matrices.sum(0))

    @property
    def figures(self) -> dict[str, float]:
        return self.scores.summary()

    @property
    def iou(self) -> list[float]:
        return self.scores.per_class()["iou"]

    @cached_property
    def image_miou(self) -> NDArray[np.float64]:
        """mIoU of each image over the classes that it has."""
        return scores(self.matrices).miou


@dataclass(frozen=True)
class Outcome:
    """What the evaluation decided, and why."""

    verdict: Verdict
    reason: str
    candidate: Evaluation
    rule: PromoteParams
    champion: Evaluation | None = None
    comparison: Comparison | None = None

    @property
    def summary(self) -> str:
        """One line for the terminal."""
        miou = self.candidate.figures["miou"]
        return (
            f"test mIoU {miou:.4f}; version {self.candidate.version.version} {self.verdict}: "
            + (self.reason)
        )


def write(folder: Path, dataset: ShardedDataset, outcome: Outcome, *, rows: Sequence[int]) -> None:
    """Write every file of the report into `folder`; `metrics.json` last.

    Args:
        rows: of the test split, in the order of the evaluations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    candidate = outcome.candidate
    total = candidate.matrices.sum(0)
    _write_confusions(folder / "confusions.parquet", outcome)
    _write_csv(folder / "per_class.csv", _per_class(dataset, outcome))
    _write_csv(folder / "confusion.csv", _plot_rows(total, dataset.classes))
    write_file(folder / "confusion.png", charts.confusion_png(total, dataset.classes))
    pictures = _write_overlays(folder / "overlays", dataset, candidate, rows)
    write_file(folder / "index.html", _page(folder, dataset, outcome, pictures).encode())
    document = {
        **candidate.figures,
        "images": len(candidate.ids),
        "iou": dict(zip(dataset.classes, candidate.iou, strict=True)),
    }
    text = json.dumps(_finite(document), indent=2, allow_nan=False)
    write_file(folder / "metrics.json", f"{text}\n".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_confusions(path: Path, outcome: Outcome) -> None:
    """One row per image and model: id, model, confusion (K*K counts, row by row)."""
    evaluations = {"candidate": outcome.candidate, "champion": outcome.champion}
    tables = [
        pa.table(
            {
                "id": pa.array(found.ids, pa.string()),
                "model": pa.array([model] * len(found.ids), pa.string()),
                "version": pa.array([found.version.uri] * len(found.ids), pa.string()),
                "confusion": pa.array(
                    list(found.matrices.reshape(len(found.ids), -1)), pa.list_(pa.int64())
                ),
            }
        )
        for model, found in evaluations.items()
        if found is not None
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    write_file(path, buffer.getvalue())


def _per_class(dataset: ShardedDataset, outcome: Outcome) -> list[dict[str, Any]]:
    own = outcome.candidate.scores.per_class()
    pixels = outcome.candidate.matrices.sum(0).sum(1)
    other = outcome.champion.iou if outcome.champion else [math.nan] * len(pixels)
    return [
        {
            "class": name,
            **{key: _number(own[key][index]) for key in ("iou", "precision", "recall", "f1")},
            "pixel_share": _number(pixels[index] / max(1, pixels.sum())),
            "champion_iou": _number(other[index]),
        }
        for index, name in enumerate(dataset.classes)
    ]


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.6f}"


def _plot_rows(total: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for DVC's confusion template, which counts rows: a thousand for each actual class."""
    rows = []
    for actual, counts in zip(classes, total, strict=True):
        shares = counts / max(1, counts.sum()) * PLOT_ROWS
        for predicted, share in zip(classes, shares, strict=True):
            rows += [{"actual": actual, "predicted": predicted}] * round(share)
    return rows or [{"actual": classes[0], "predicted": classes[0]}]


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, buffer.getvalue().encode())


def _write_overlays(
    folder: Path, dataset: ShardedDataset, candidate: Evaluation, rows: Sequence[int]
) -> list[dict[str, Any]]:
    """Panels of the best, median and worst images; returns what the page shows of them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    split = dataset.split("test")
    order = np.argsort(-np.nan_to_num(candidate.image_miou, nan=0.0), kind="stable")
    shown = []
    for kind, places in _chosen(len(order)).items():
        for number, place in enumerate(places):
            index = int(order[place])
            image, truth = split.decode(rows[index])
            if truth is None:
                continue
            mask = candidate.predictor(image)[0].mask
            panel = visualize.panel(
                [
                    Image.fromarray(image.squeeze()),
                    visualize.overlay(image, truth, palette=dataset.palette),
                    visualize.overlay(image, mask, palette=dataset.palette),
                    visualize.difference(image, mask, truth, ignore_index=dataset.ignore_index),
                ],
                height=PANEL_PX,
            )
            name = f"{kind}-{number + 1}.png"
            write_file(folder / name, charts.encode(panel, "PNG"))
            shown.append(
                {
                    "kind": kind,
                    "id": candidate.ids[index],
                    "miou": float(candidate.image_miou[index]),
                    "source": _data_uri(charts.encode(panel, "JPEG"), "jpeg"),
                    "width": panel.width,
                    "height": panel.height,
                }
            )
    return shown


def _chosen(count: int) -> dict[str, list[int]]:
    """Places in the order from best to worst; few images are shown once each."""
    each = max(1, min(SHOWN, count // len(KINDS)))
    middle = (count - each) // 2
    places = {
        "best": range(each),
        "median": range(middle, middle + each),
        "worst": range(count - 1, count - 1 - each, -1),
    }
    seen: set[int] = set()
    unique: dict[str, list[int]] = {}
    for kind, candidates in places.items():
        unique[kind] = [place for place in candidates if place not in seen]
        seen.update(unique[kind])
    return unique


def _page(
    folder: Path, dataset: ShardedDataset, outcome: Outcome, pictures: Sequence[dict[str, Any]]
) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = lambda value, digits=3: (
        "n/a" if value is None or math.isnan(value) else f"{value:.{digits}f}"
    )
    own = outcome.candidate.scores.per_class()
    pixels = outcome.candidate.matrices.sum(0).sum(1)
    champion_iou = outcome.champion.iou if outcome.champion else [math.nan] * len(pixels)
    classes = [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*color),
            **{key: own[key][index] for key in ("iou", "precision", "recall", "f1")},
            "share": float(pixels[index] / max(1, pixels.sum())),
            "champion_iou": champion_iou[index],
        }
        for index, (name, color) in enumerate(zip(dataset.classes, dataset.palette, strict=True))
    ]
    confusion = _data_uri((folder / "confusion.png").read_bytes(), "png")
    return environment.get_template("report.html.j2").render(
        dataset=dataset,
        outcome=outcome,
        spec=outcome.candidate.predictor.spec,
        classes=classes,
        pictures=pictures,
        kinds=KINDS,
        confusion=confusion,
        interval=charts.interval_svg(outcome.comparison, outcome.rule.margin),
        histogram=charts.histogram_svg(
            outcome.candidate.image_miou,
            None if outcome.champion is None else outcome.champion.image_miou,
        ),
    )


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
