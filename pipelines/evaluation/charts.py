"""Pictures of the report: confusion matrix, curves, bootstrap interval, scores per image."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.scoring.bootstrap import Comparison
from segcore.tasks.sections import Curves

BINS = 20


def encode(picture: Image.Image, kind: str) -> bytes:
    """The picture as PNG, or as JPEG of quality 88."""
    buffer = io.BytesIO()
    if kind == "JPEG":
        picture.convert("RGB").save(buffer, kind, quality=88, subsampling=0)
    else:
        picture.save(buffer, kind, optimize=True)
    return buffer.getvalue()


def confusion_png(total: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Heat map of a confusion matrix [K, K], in per cent of each actual class.

    Classes that are nowhere in the labels have an empty row.
    """
    from matplotlib.figure import Figure

    counts = total.sum(1, keepdims=True)
    share = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    side = max(4.2, 0.46 * len(classes) + 1.3)
    figure = Figure(figsize=(side, side * 0.92), dpi=140, layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right", fontsize=9)
    axes.set_yticks(ticks, classes, fontsize=9)
    axes.set_xlabel("predicted", color="#555")
    axes.set_ylabel("actual", color="#555")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for actual, predicted in np.argwhere(share >= 0.005):
        value = share[actual, predicted]
        color = "white" if value > 0.45 else "#1d3557"
        axes.text(
            predicted, actual, f"{100 * value:.0f}", ha="center", va="center", color=color, size=8.5
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def curves_png(curves: Curves) -> bytes:
    """Lines over one pair of axes, with a legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), dpi=140, layout="constrained")
    axes = figure.subplots()
    for name, (xs, ys) in curves.series.items():
        axes.plot(xs, ys, label=name, linewidth=1.6)
    axes.set_xlabel(curves.x_name, color="#555")
    axes.set_ylabel(curves.y_name, color="#555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eee")
    if curves.series:
        axes.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def interval_svg(comparison: Comparison | None, margin: float) -> str:
    """The interval of the difference on an axis, with zero and the margin; "" without one."""
    if comparison is None or np.isnan(comparison.low):
        return ""
    reach = 1.25 * max(abs(comparison.low), abs(comparison.high), abs(margin), 1e-4)

    def x(value: float) -> float:
        return 320 + 300 * value / reach

    low, high, middle = x(comparison.low), x(comparison.high), x(comparison.difference)
    limit = (
        f'<line x1="{x(margin):.1f}" x2="{x(margin):.1f}" y1="14" y2="58" class="margin"/>'
        if margin
        else ""
    )
    return (
        '<svg viewBox="0 0 640 84" class="interval" role="img" aria-label="interval">'
        '<line x1="20" x2="620" y1="36" y2="36" class="axis"/>'
        f'<line x1="320" x2="320" y1="14" y2="58" class="zero"/>{limit}'
        f'<rect x="{low:.1f}" y="28" width="{max(high - low, 2):.1f}" height="16" rx="8"/>'
        f'<circle cx="{middle:.1f}" cy="36" r="6"/>'
        f'<text x="320" y="76" text-anchor="middle">no difference</text>'
        f'<text x="24" y="76">champion better</text>'
        '<text x="616" y="76" text-anchor="end">candidate better</text></svg>'
    )


def histogram_svg(
    own: NDArray[np.float64], other: NDArray[np.float64] | None, *, label: str
) -> str:
    """How many images have which score in 0..1; the champion's, if any, as an outline."""
    series = [own] if other is None else [own, other]
    counts = [np.histogram(np.nan_to_num(s), bins=BINS, range=(0.0, 1.0))[0] for s in series]
    top = max(1, max(int(c.max()) for c in counts))
    width, height = 30, 120
    bars = "".join(
        f'<rect x="{20 + width * i + 2}" y="{20 + height * (1 - n / top):.1f}" '
        f'width="{width - 4}" height="{height * n / top:.1f}" rx="2"><title>{n} images, {label} '
        f"{i / BINS:.2f}-{(i + 1) / BINS:.2f}</title></rect>"
        for i, n in enumerate(counts[0])
    )
    outline = ""
    if other is not None:
        points = " ".join(
            f"{20 + width * (i + side)},{20 + height * (1 - n / top):.1f}"
            for i, n in enumerate(counts[1])
            for side in (0, 1)
        )
        outline = f'<polyline points="{points}"/>'
    ticks = "".join(
        f'<text x="{20 + width * BINS * tick}" y="158" text-anchor="middle">{tick:g}</text>'
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    return (
        '<svg viewBox="0 0 640 164" class="histogram" role="img" '
        f'aria-label="{label} per image">'
        f'<line x1="20" x2="620" y1="140" y2="140" class="axis"/>{bars}{outline}{ticks}</svg>'
    )
