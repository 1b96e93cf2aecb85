"""Histograms of each layer's gradients: a table and a picture of one epoch, for MLflow."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from segcore.engine import GradientHistogram

MOST_LABELS = 80

Histograms = Mapping[str, "GradientHistogram"]


def write_gradients(folder: Path, stem: str, histograms: Histograms) -> None:
    """Write `<stem>.json` (bin edges, and each layer's counts) and `<stem>.png` into a folder."""
    from segcore.engine.gradients import EDGES

    folder.mkdir(parents=True, exist_ok=True)
    layers = {layer: asdict(histogram) for layer, histogram in histograms.items()}
    (folder / f"{stem}.json").write_text(json.dumps({"edges": EDGES, "layers": layers}))
    draw_gradients(folder / f"{stem}.png", histograms)


def draw_gradients(file: Path, histograms: Histograms) -> None:
    """A heat map, layers from input to output, and above it what share of each is exactly 0."""
    from matplotlib.figure import Figure

    from segcore.engine.gradients import BINS, HIGHEST, LOWEST

    layers = range(len(histograms))
    counts = np.array([histogram.counts for histogram in histograms.values()]).reshape(-1, BINS)
    zeros = np.array([histogram.zeros for histogram in histograms.values()])
    elements = np.maximum(counts.sum(1) + zeros, 1)
    figure = Figure(figsize=(min(3 + 0.12 * len(layers), 20), 6), dpi=110, layout="constrained")
    share, heat = figure.subplots(2, sharex=True, height_ratios=(1, 6))
    share.bar(layers, 100 * zeros / elements, color="#777", width=0.9)
    share.set_ylabel("% zero")
    span = (-0.5, len(layers) - 0.5, LOWEST, HIGHEST)
    drawn = heat.imshow(
        (counts / elements[:, None]).T, cmap="magma", aspect="auto", origin="lower", extent=span
    )
    sizes = [np.log10(h.rms) if h.rms > 0 else np.nan for h in histograms.values()]
    heat.plot(layers, sizes, "o", color="#4cc9f0", markersize=3, label="rms")
    filled = np.flatnonzero(counts.sum(0))
    if len(filled):
        decades = LOWEST + (HIGHEST - LOWEST) * np.array([filled[0], filled[-1] + 1]) / BINS
        heat.set_ylim(decades)
    heat.set_ylabel("log10 |gradient|")
    every = -(-len(layers) // MOST_LABELS)
    heat.set_xticks(layers[::every], list(histograms)[::every], rotation=90, fontsize=7)
    heat.legend(loc="lower left", fontsize=7)
    figure.colorbar(drawn, ax=heat, label="share of the layer's elements")
    figure.savefig(file, metadata={"Software": None})
