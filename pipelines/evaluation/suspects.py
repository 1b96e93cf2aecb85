"""Labels that a model contradicts, ranked: a page, a table, and a summary for the report."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pipelines.evaluation import charts, drawn
from segcore.data.atomic import write_file
from segcore.data.shards import ShardedDataset
from segcore.inference import visualize
from segcore.inference.contradictions import Contradiction
from segcore.tasks import Kind

TEMPLATES = Path(__file__).with_name("templates")
PAGE, TABLE, SUMMARY = "index.html", "suspects.csv", "summary.json"
PANEL_PX = 240
MARKED = 3  # regions of a picture that are outlined and named
TOP = 10  # pictures in the summary
INK = (255, 255, 255)


@dataclass(frozen=True)
class Suspect:
    """A training picture whose label is contradicted somewhere.

    Args:
        row: of the split train.
        id: of the picture.
        fold: number of the model that judged it, which was not trained on it.
        regions: where, the strongest first; at least one.
    """

    row: int
    id: str
    fold: int
    regions: tuple[Contradiction, ...]

    @property
    def score(self) -> float:
        """That of its strongest region."""
        return self.regions[0].score


@dataclass(frozen=True)
class Shown:
    """A suspect on the page.

    Args:
        suspect: of which it is.
        titles: of the parts of the panel, left to right.
        panel: picture, label, prediction and errors, with the regions marked.
    """

    suspect: Suspect
    titles: Sequence[str]
    panel: Image.Image


def rank(found: Iterable[Suspect]) -> list[Suspect]:
    """The most suspicious first; equal ones in the order of the dataset."""
    return sorted(found, key=lambda suspect: (-suspect.score, suspect.row))


def draw(suspect: Suspect, pictures: Mapping[str, Image.Image]) -> Shown:
    """A suspect's pictures side by side, its strongest regions outlined in each.

    Args:
        pictures: of one size, by title, as `Kind.panel` gives them.
    """
    marked = []
    for picture in pictures.values():
        factor = max(1, -(-PANEL_PX // picture.height))
        size = (picture.width * factor, picture.height * factor)
        large = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(large)
        for region in suspect.regions[:MARKED]:
            top, left, bottom, right = (factor * side for side in region.box)
            pen.rectangle((left - 1, top - 1, right, bottom), outline=INK, width=2)
        marked.append(large)
    return Shown(suspect, list(pictures), visualize.panel(marked, height=PANEL_PX))


def write(
    folder: Path,
    dataset: ShardedDataset,
    found: Sequence[Suspect],
    *,
    kind: Kind,
    shown: Sequence[Shown],
    facts: Mapping[str, Any],
) -> None:
    """Write page, table and summary.

    Args:
        folder: created.
        found: ranked.
        kind: of the labels.
        shown: the first of them, drawn.
        facts: how it was found: folds, model, minutes; in page and summary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / TABLE, _table(found, dataset.classes))
    write_file(folder / PAGE, _page(dataset, found, kind=kind, shown=shown, facts=facts).encode())
    summary = {
        "dataset": dataset.digest,
        "pictures": len(dataset.split("train")),
        "contradicted": len(found),
        "facts": dict(facts),
        "top": lines(found[:TOP], dataset.classes),
    }
    write_file(folder / SUMMARY, f"{json.dumps(summary, indent=1)}\n".encode())


def read_summary(folder: Path, dataset: ShardedDataset) -> dict[str, Any] | None:
    """What `write` summed up of this dataset; None if it did not, or of other shards."""
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        fits = summary["dataset"] == dataset.digest
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(summary) if fits else None


def lines(found: Sequence[Suspect], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Place, picture and strongest region of ranked suspects, as JSON values."""
    return [
        {
            "place": place,
            "id": suspect.id,
            "label": classes[suspect.regions[0].label],
            "predicted": classes[suspect.regions[0].predicted],
            "area": suspect.regions[0].area,
            "confidence": suspect.regions[0].confidence,
            "score": suspect.score,
        }
        for place, suspect in enumerate(found, 1)
    ]


def _table(found: Sequence[Suspect], classes: Sequence[str]) -> bytes:
    """A row a region: pictures by rank, and in each its regions by score."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    corners = ("top", "left", "bottom", "right")
    measures = ("area", "confidence", "doubt", "score")
    writer.writerow(["place", "id", "region", "label", "predicted", *measures, *corners, "fold"])
    for place, suspect in enumerate(found, 1):
        for number, region in enumerate(suspect.regions, 1):
            values = asdict(region)
            figures = [values["area"], *(f"{values[name]:.4f}" for name in measures[1:])]
            names = [classes[region.label], classes[region.predicted]]
            writer.writerow(
                [place, suspect.id, number, *names, *figures, *region.box, suspect.fold]
            )
    return text.getvalue().encode()


def _page(
    dataset: ShardedDataset,
    found: Sequence[Suspect],
    *,
    kind: Kind,
    shown: Sequence[Shown],
    facts: Mapping[str, Any],
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["color"] = lambda color: "#{:02x}{:02x}{:02x}".format(*color)
    return environment.get_template("suspects.html.j2").render(
        dataset=dataset,
        found=found,
        legend=kind.legend(dataset),
        marked=MARKED,
        facts=facts,
        table=TABLE,
        shown=[
            {
                "suspect": one.suspect,
                "titles": one.titles,
                "source": drawn.data_uri(charts.encode(one.panel, "JPEG"), "jpeg"),
                "width": one.panel.width,
                "height": one.panel.height,
            }
            for one in shown
        ],
    )
