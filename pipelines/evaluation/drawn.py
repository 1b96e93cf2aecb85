"""Sections of a report drawn: as files beside the page, and as pictures in it."""

import base64
import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from pipelines.evaluation import charts
from segcore.tasks.sections import ClassTable, Curves, Heatmap, Section

PLOT_ROWS = 1000


def files(section: Section) -> dict[str, bytes]:
    """The files of a section by name; none for one without a stem."""
    if isinstance(section, ClassTable):
        return {f"{section.stem}.csv": _csv(_class_rows(section))}
    if isinstance(section, Heatmap):
        plot = {f"{section.stem}.csv": _csv(_plot_rows(section))}
        return {**plot, f"{section.stem}.png": charts.confusion_png(section.counts, section.names)}
    if isinstance(section, Curves):
        return {f"{section.stem}.csv": _csv(_curve_rows(section))}
    return {}


def picture(section: Heatmap | Curves | Image.Image) -> str:
    """A section, or one picture of a gallery, as the source of an image in the page."""
    if isinstance(section, Image.Image):
        return data_uri(charts.encode(section, "JPEG"), "jpeg")
    if isinstance(section, Curves):
        return data_uri(charts.curves_png(section), "png")
    return data_uri(charts.confusion_png(section.counts, section.names), "png")


def data_uri(data: bytes, kind: str) -> str:
    """A picture inside the page itself."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _class_rows(table: ClassTable) -> list[dict[str, Any]]:
    champion = table.champion or [math.nan] * len(table.names)
    return [
        {
            "class": name,
            **{column.key: _number(column.values[index]) for column in table.columns},
            f"champion_{table.columns[0].key}": _number(champion[index]),
        }
        for index, name in enumerate(table.names)
    ]


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.6f}"


def _plot_rows(heatmap: Heatmap) -> list[dict[str, Any]]:
    """Rows for DVC's confusion template, which counts rows: a thousand for each actual class."""
    names = heatmap.names
    rows = []
    for actual, counts in zip(names, heatmap.counts, strict=True):
        shares = counts / max(1, counts.sum()) * PLOT_ROWS
        for predicted, share in zip(names, shares, strict=True):
            rows += [{"actual": actual, "predicted": predicted}] * round(share)
    return rows or [{"actual": names[0], "predicted": names[0]}]


def _curve_rows(curves: Curves) -> list[dict[str, Any]]:
    return [
        {"series": name, curves.x_name: float(x), curves.y_name: float(y)}
        for name, (xs, ys) in curves.series.items()
        for x, y in zip(xs, ys, strict=True)
    ] or [{"series": "", curves.x_name: "", curves.y_name: ""}]


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()
