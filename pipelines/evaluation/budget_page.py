"""The annotation budget: points and curves as a page, a picture and a table."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation import drawn, saturation
from pipelines.evaluation.saturation import Curves, Gain
from pipelines.params import PromoteParams
from segcore.data.atomic import write_file

TEMPLATES = Path(__file__).with_name("templates")
PAGE, TABLE, PICTURE = "index.html", "points.csv", "curve.png"
COLORS = ("#2f6fde", "#c0562c")
SMOOTH = 80

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Point:
    """A model's figure on the test split.

    Args:
        fraction: of the training pictures that had masks.
        labels: how many these are.
        method: how it was trained.
        figure: on the whole split.
        resampled: under resamples of its images [R], the same for all points.
    """

    fraction: float
    labels: int
    method: str
    figure: float
    resampled: Floats

    def interval(self, confidence: float) -> tuple[float, float]:
        """The percentile interval of the figure over test images."""
        tail = (1.0 - confidence) / 2.0
        low, high = np.nanquantile(self.resampled, [tail, 1.0 - tail])
        return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Line:
    """The points of one method, and what follows from them.

    Args:
        method: of them.
        points: by number of labels.
        curve: through them; None where they are too few for one.
        spread: how else it might have come out.
        gain: of more labels; None without a curve.
    """

    method: str
    points: Sequence[Point]
    curve: Curves | None
    spread: Curves | None
    gain: Gain | None


@dataclass(frozen=True, eq=False)
class Answer:
    """What more labels would bring.

    Args:
        lines: a method each.
        name: of the figure.
        confidence: of all intervals.
    """

    lines: Sequence[Line]
    name: str
    confidence: float

    def sentences(self) -> list[str]:
        """The answer in words, one sentence a method that has a curve."""
        return [self._sentence(line, line.gain) for line in self.lines if line.gain is not None]

    def _sentence(self, line: Line, gain: Gain) -> str:
        doubt = (
            ""
            if gain.low > 0
            else "; the interval reaches 0: these points cannot tell it from none"
        )
        return (
            f"{line.method}: {gain.more} more masks beyond {gain.labels} would bring "
            f"{gain.value:+.4f} {self.name} "
            f"({self.confidence:.0%} interval {gain.low:+.4f} to {gain.high:+.4f}){doubt}"
        )


def answer_of(points: Sequence[Point], *, more: int, name: str, rule: PromoteParams) -> Answer:
    """Fit a curve to each method's points where they are enough.

    Args:
        more: labels of which the gain speaks, beyond the most that any point had.
        name: of the figure.
        rule: whose confidence and seed are used.
    """
    most = max(point.labels for point in points)
    methods = dict.fromkeys(point.method for point in points)
    lines = [
        _line(method, [point for point in points if point.method == method], most, more, rule)
        for method in methods
    ]
    return Answer(lines, name, rule.confidence)


def _line(method: str, points: list[Point], most: int, more: int, rule: PromoteParams) -> Line:
    points = sorted(points, key=lambda point: point.labels)
    if len({point.labels for point in points}) <= saturation.PARAMETERS:
        return Line(method, points, None, None, None)  # nothing would be left to see a spread by
    labels = np.array([point.labels for point in points], np.float64)
    figures = np.array([point.figure for point in points])
    resampled = np.stack([point.resampled for point in points], axis=1)
    resampled = resampled[np.isfinite(resampled).all(1)]
    curve = saturation.fit(labels, figures[None])
    spread = saturation.spread(labels, figures, resampled, seed=rule.seed)
    gain = saturation.gain(curve, spread, labels=most, more=more, confidence=rule.confidence)
    return Line(method, points, curve, spread, gain)


def write(folder: Path, dataset: str, answer: Answer) -> None:
    """Write page, picture and table; earlier ones are replaced."""
    import jinja2

    folder.mkdir(parents=True, exist_ok=True)
    picture = _picture(answer)
    write_file(folder / TABLE, _table(answer))
    write_file(folder / PICTURE, picture)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("budget.html.j2").render(
        dataset=dataset, answer=answer, picture=drawn.data_uri(picture, "png"), table=TABLE
    )
    write_file(folder / PAGE, page.encode())


def _table(answer: Answer) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "fraction", "labels", "figure", "low", "high"])
    for line in answer.lines:
        for point in line.points:
            figures = (point.figure, *point.interval(answer.confidence))
            names = (point.method, f"{point.fraction:g}", point.labels)
            writer.writerow([*names, *(f"{value:.6f}" for value in figures)])
    return text.getvalue().encode()


def _picture(answer: Answer) -> bytes:
    """Points with their intervals, the curve of each method, and the band of its spread."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=140, layout="constrained")
    axes = figure.subplots()
    tail = (1.0 - answer.confidence) / 2.0
    for color, line in zip(COLORS, answer.lines, strict=False):
        labels = np.array([point.labels for point in line.points], np.float64)
        middle = np.array([point.figure for point in line.points])
        ends = np.array([point.interval(answer.confidence) for point in line.points]).T
        reach = np.maximum(np.stack([middle - ends[0], ends[1] - middle]), 0.0)
        axes.errorbar(labels, middle, reach, fmt="o", color=color, capsize=3, label=line.method)
        if line.curve is not None and line.spread is not None and line.gain is not None:
            places = np.geomspace(labels[0], line.gain.labels + line.gain.more, SMOOTH)
            low, high = np.quantile(line.spread.at(places), [tail, 1.0 - tail], axis=0)
            axes.plot(places, line.curve.at(places)[0], color=color, linewidth=1.6)
            axes.fill_between(places, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    ticks = sorted({point.labels for line in answer.lines for point in line.points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training pictures with masks", color="#555")
    axes.set_ylabel(f"test {answer.name}", color="#555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eee")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
