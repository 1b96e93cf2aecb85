"""The files of the evaluate stage: figures for DVC, per-image records, pictures, one page."""

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

from pipelines.evaluation import charts, drawn, suspects
from pipelines.params import PromoteParams
from pipelines.scoring import pages
from pipelines.scoring.bootstrap import Comparison, Verdict
from pipelines.tracking.version import Version
from segcore.data.atomic import write_file
from segcore.data.rows import decode_labelled
from segcore.data.shards import ShardedDataset
from segcore.inference import visualize
from segcore.tasks import Kind
from segcore.tasks.kind import AnyPredictor, Floats, Records
from segcore.tasks.sections import ClassTable, Section

TEMPLATES = Path(__file__).with_name("templates")
SHOWN = 3
PANEL_PX = 240
DOCTOR = "doctor"  # folder of the label doctor, beside the report's
KINDS = ("best", "median", "worst")


@dataclass(frozen=True)
class Evaluation:
    """A version's result on every labelled image of a split.

    Args:
        version: of the registry.
        predictor: its model.
        kind: what it predicts.
        table: a record of each image: its id, then the kind's columns.
        records: the same as the kind weights them.
        split: "test"; "val" where test has no label.
    """

    version: Version
    predictor: AnyPredictor
    kind: Kind
    table: pa.Table
    records: Records
    split: str

    @cached_property
    def ids(self) -> list[str]:
        """Of the images, in order."""
        return [str(name) for name in self.table.column("id").to_pylist()]

    def weighted(self, weights: Floats) -> dict[str, Floats]:
        """Figures [R] under weights of the images [R, B]."""
        return self.kind.figures(self.records, weights)

    @cached_property
    def figures(self) -> dict[str, float]:
        """Of the whole split."""
        found = self.weighted(np.ones((1, len(self.ids))))
        return {key: float(values[0]) for key, values in found.items()}

    @cached_property
    def image_scores(self) -> Floats:
        """How well each image was done, in 0..1."""
        return self.kind.image_scores(self.records)


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
        kind, split = self.candidate.kind, self.candidate.split
        value = self.candidate.figures[kind.headline]
        return (
            f"{split} {kind.headline_label} {value:.4f}; version {self.candidate.version.version} "
            f"{self.verdict}: {self.reason}"
        )

    def class_table(self, dataset: ShardedDataset) -> ClassTable:
        """Figures by class."""
        other = self.champion.records if self.champion else None
        return self.candidate.kind.class_table(self.candidate.records, other, dataset)

    def sections(self, dataset: ShardedDataset) -> Sequence[Section]:
        """What the kind of task shows beside the common parts."""
        other = self.champion.records if self.champion else None
        return self.candidate.kind.sections(self.candidate.records, other, dataset)


def write(folder: Path, dataset: ShardedDataset, outcome: Outcome, *, rows: Sequence[int]) -> None:
    """Write every file of the report into `folder`; `metrics.json` last.

    Args:
        rows: of the split, in the order of the evaluations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    candidate = outcome.candidate
    _write_records(folder / f"{candidate.kind.records_stem}.parquet", outcome)
    sections = outcome.sections(dataset)
    for section in sections:
        for name, content in drawn.files(section).items():
            write_file(folder / name, content)
    pictures = _write_overlays(folder / "overlays", dataset, candidate, rows)
    doctor = suspects.read_summary(folder.parent / DOCTOR, dataset)
    page = _page(dataset, outcome, sections, pictures, doctor)
    write_file(folder / "index.html", page.encode())
    document = {
        **candidate.figures,
        "images": len(candidate.ids),
        **class_figures(dataset, outcome),
    }
    text = json.dumps(_finite(document), indent=2, allow_nan=False)
    write_file(folder / "metrics.json", f"{text}\n".encode())


def class_figures(dataset: ShardedDataset, outcome: Outcome) -> dict[str, dict[str, float]]:
    """{key: {class: value}} of the first column of the class table."""
    table = outcome.class_table(dataset)
    first = table.columns[0]
    return {first.key: dict(zip(table.names, first.values, strict=True))}


def main_files(folder: Path) -> list[Path]:
    """What of a report the MLflow run keeps."""
    return [folder / "index.html", folder / "metrics.json", *sorted(folder.glob("*.png"))]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_records(path: Path, outcome: Outcome) -> None:
    """One row per image and model: id, model, version, then the columns of the kind of task."""
    evaluations = {"candidate": outcome.candidate, "champion": outcome.champion}
    tables = []
    for model, found in evaluations.items():
        if found is not None:
            count = len(found.ids)
            table = found.table.add_column(1, "model", pa.array([model] * count, pa.string()))
            uri = pa.array([found.version.uri] * count, pa.string())
            tables.append(table.add_column(2, "version", uri))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    write_file(path, buffer.getvalue())


def _write_overlays(
    folder: Path, dataset: ShardedDataset, candidate: Evaluation, rows: Sequence[int]
) -> list[dict[str, Any]]:
    """Panels of the best, median and worst images; returns what the page shows of them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    split, kind, spec = dataset.split(candidate.split), candidate.kind, candidate.predictor.spec
    scores, targets = candidate.image_scores, kind.targets(dataset)
    order = np.argsort(-np.nan_to_num(scores, nan=0.0), kind="stable")
    shown = []
    for group, places in _chosen(len(order)).items():
        for number, place in enumerate(places):
            index = int(order[place])
            image, label = decode_labelled(split, rows[index], targets)
            if label is None:
                continue
            pictures = kind.panel(image, label, candidate.predictor(image)[0], spec)
            panel = visualize.panel(list(pictures.values()), height=PANEL_PX)
            name = f"{group}-{number + 1}.png"
            write_file(folder / name, charts.encode(panel, "PNG"))
            shown.append(
                {
                    "kind": group,
                    "id": candidate.ids[index],
                    "titles": list(pictures),
                    "score": float(scores[index]),
                    "source": drawn.data_uri(charts.encode(panel, "JPEG"), "jpeg"),
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
    dataset: ShardedDataset,
    outcome: Outcome,
    sections: Sequence[Section],
    pictures: Sequence[dict[str, Any]],
    doctor: dict[str, Any] | None,
) -> str:
    environment = pages.environment(TEMPLATES)
    environment.filters["color"] = lambda color: "#{:02x}{:02x}{:02x}".format(*color)
    candidate, champion = outcome.candidate, outcome.champion
    kind = candidate.kind
    page = environment.get_template("report.html.j2").render(
        dataset=dataset,
        outcome=outcome,
        kind=kind,
        spec=candidate.predictor.spec,
        sections=sections,
        picture_of=drawn.picture,
        pictures=pictures,
        doctor=doctor,
        kinds=KINDS,
        legend=kind.legend(dataset),
        interval=charts.interval_svg(outcome.comparison, outcome.rule.margin),
        histogram=charts.histogram_svg(
            candidate.image_scores,
            None if champion is None else champion.image_scores,
            label=kind.headline_label,
        ),
    )
    return str(page)
