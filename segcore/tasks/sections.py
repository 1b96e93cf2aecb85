"""What a report is made of, as data: a kind says what, the stage evaluate draws it.

Every section becomes a card of the page; those with a `stem` become files of that name as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Column:
    """One figure of every class.

    Args:
        key: name in files and metrics.
        name: head of the column.
        values: one per row of the table; NaN where it is not defined.
        is_share: shown in per cent, as a fact of the data beside the figures.
    """

    key: str
    name: str
    values: Sequence[float]
    is_share: bool = False


@dataclass(frozen=True)
class ClassTable:
    """A row per class; the first column is drawn as a bar, with the champion's value on it.

    The file is <stem>.csv: class, every column, champion_<key of the first>. The values of the
    first column are metrics of the run, `test/<key>/<class>`, and in metrics.json.

    Args:
        names: of the classes, one per row.
        colors: (r, g, b), one per row.
        columns: at least one.
        champion: values of the first column for the champion; None without one.
    """

    names: Sequence[str]
    colors: Sequence[tuple[int, int, int]]
    columns: Sequence[Column]
    champion: Sequence[float] | None = None
    title: str = "Per class"
    stem: str = "per_class"
    template: str = field(default="classes", init=False)
    is_wide: bool = field(default=True, init=False)


@dataclass(frozen=True)
class Heatmap:
    """Counts of pairs: the files are <stem>.png, and <stem>.csv for DVC's confusion template.

    Args:
        counts: [K, K], rows the actual class.
        names: of the classes.
    """

    counts: NDArray[Any]
    names: Sequence[str]
    title: str
    stem: str
    template: str = field(default="heatmap", init=False)
    is_wide: bool = field(default=False, init=False)


@dataclass(frozen=True)
class Curves:
    """Lines over one pair of axes, such as precision over recall; the file is <stem>.csv.

    Args:
        series: name -> (x values, y values); drawn in this order.
    """

    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x_name: str
    y_name: str
    title: str
    stem: str
    template: str = field(default="curves", init=False)
    is_wide: bool = field(default=False, init=False)


@dataclass(frozen=True)
class Gallery:
    """Pictures, each with a line below it: the worst misses as crops, say.

    Args:
        pictures: (picture, words).
    """

    pictures: Sequence[tuple[Image.Image, str]]
    title: str
    template: str = field(default="gallery", init=False)
    is_wide: bool = field(default=True, init=False)


Section = ClassTable | Heatmap | Curves | Gallery


@dataclass(frozen=True)
class Shown:
    """A line of the legend beside an overlay: what has this colour there.

    Args:
        detail: its share of the image, or its score.
    """

    name: str
    color: tuple[int, int, int]
    detail: str = ""
