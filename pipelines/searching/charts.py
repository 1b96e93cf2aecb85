"""Pictures of the search report: parallel coordinates, two objectives, intervals."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.trial_facts import COMPLETED, Trial
from pipelines.params.space import Choice, Drawn
from pipelines.params.tune import Objective
from pipelines.scoring.bootstrap import Comparison

INK, SOFT, PRUNED_COLOR, CHOSEN_COLOR = "#1b2430", "#667085", "#c9ced6", "#c0362c"
LONGEST_LABEL = 26


class Axis:
    """One vertical axis: from values to places in 0..1, with ticks.

    Args:
        name: below it.
        drawn: the distribution; None for figures.
        values: that trials have.
    """

    def __init__(self, name: str, drawn: Drawn | None, values: Sequence[Any]) -> None:
        self.name = name
        self._names: list[str] = []
        self._log = False
        if isinstance(drawn, Choice):
            self._names = [json.dumps(value) for value in drawn.values]
            return
        self._log = drawn is not None and drawn.kind == "loguniform"
        low, high = (min(values), max(values)) if drawn is None else (drawn.low, drawn.high)
        margin = abs(low) * 0.01 or 0.01
        self._low, self._high = (low, high) if high > low else (low - margin, high + margin)

    def place(self, value: Any) -> float:
        """Of a value, in 0..1."""
        if self._names:
            return (self._names.index(json.dumps(value)) + 0.5) / len(self._names)
        if self._log:
            return math.log(value / self._low) / math.log(self._high / self._low)
        return float((value - self._low) / (self._high - self._low))

    def ticks(self) -> list[tuple[float, str]]:
        """Places, and what is written there."""
        if self._names:
            return [(self.place(json.loads(name)), _label(name)) for name in self._names]
        steps = [index / 4 for index in range(5)]
        if self._log:
            return [(at, f"{self._low * (self._high / self._low) ** at:.2g}") for at in steps]
        return [(at, f"{self._low + (self._high - self._low) * at:.3g}") for at in steps]


def parallel_png(
    trials: Sequence[Trial],
    space: Mapping[str, Drawn],
    goals: Sequence[Objective],
    chosen: Trial,
) -> bytes:
    """A line through each trial's values and figures, coloured by the first objective.

    Trials that were stopped early are grey, behind the others; the chosen one is the thick one.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = [goal.metric for goal in goals]
    shown = [trial for trial in trials if trial.measured(names)]
    axes_of = [Axis(key, drawn, []) for key, drawn in space.items()]
    axes_of += [Axis(name, None, [trial.figures[name] for trial in shown]) for name in names]
    width = max(7.0, 2.1 * len(axes_of))
    figure = Figure(figsize=(width, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"]
    shade = axes_of[len(space)]
    for trial in sorted(shown, key=lambda one: (one.outcome == COMPLETED, one is chosen)):
        values = [*(trial.values[key] for key in space), *(trial.figures[name] for name in names)]
        heights = [axis.place(value) for axis, value in zip(axes_of, values, strict=True)]
        full, is_chosen = trial.outcome == COMPLETED, trial.id == chosen.id
        level = shade.place(trial.figures[names[0]])
        level = level if goals[0].sign > 0 else 1.0 - level
        axes.plot(
            range(len(axes_of)),
            heights,
            color=colors(0.9 * level) if full else PRUNED_COLOR,
            linewidth=3.2 if is_chosen else 1.4,
            linestyle="-" if full else "--",
        )
    _draw_axes(axes, axes_of)
    return _png(figure)


def _draw_axes(axes: Any, axes_of: Sequence[Axis]) -> None:
    for index, axis in enumerate(axes_of):
        axes.axvline(index, color=INK, linewidth=0.9)
        for at, text in axis.ticks():
            axes.plot([index - 0.02, index + 0.02], [at, at], color=INK, linewidth=0.9)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
            axes.text(index + 0.04, at, text, va="center", fontsize=8, color=INK, bbox=box)
    axes.set_xticks(range(len(axes_of)), [axis.name for axis in axes_of], fontsize=9)
    axes.set_xlim(-0.15, len(axes_of) - 0.55)
    axes.set_ylim(-0.04, 1.04)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def front_png(
    trials: Sequence[Trial], goals: Sequence[Objective], best: Sequence[Trial], chosen: Trial
) -> bytes:
    """Two objectives: all trials, the front as a line, the chosen one in a ring."""
    from matplotlib.figure import Figure

    first, other = goals[0], goals[1]
    figure = Figure(figsize=(6.4, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    for full, color, label in ((False, PRUNED_COLOR, "stopped early"), (True, "#2f6fde", "trial")):
        some = [t for t in trials if (t.outcome == COMPLETED) == full]
        some = [t for t in some if t.measured([first.metric, other.metric])]
        points = [(t.figures[other.metric], t.figures[first.metric]) for t in some]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.scatter(xs, ys, s=34, color=color, label=label)
    points = sorted((t.figures[other.metric], t.figures[first.metric]) for t in best)
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=INK, linewidth=1.2, label="no trial is better in both")
    place = (chosen.figures[other.metric], chosen.figures[first.metric])
    axes.scatter(*place, s=150, facecolors="none", edgecolors=CHOSEN_COLOR, linewidths=1.8)
    axes.annotate("taken", place, textcoords="offset points", xytext=(10, -4), color=CHOSEN_COLOR)
    axes.set_xlabel(f"{other.metric} ({_better(other)} is better)", color=SOFT)
    axes.set_ylabel(f"{first.metric} ({_better(first)} is better)", color=SOFT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eee")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def interval_svg(found: Comparison, reach: float) -> str:
    """How much better the leader is, with its interval, on an axis from -reach to reach."""
    if math.isnan(found.low):
        return ""

    def x(value: float) -> float:
        return 100.0 + 95.0 * max(-1.0, min(1.0, value / reach))

    low, high = x(found.low), x(found.high)
    return (
        '<svg viewBox="0 0 200 22" class="interval" role="img" aria-label="interval">'
        '<line x1="5" x2="195" y1="11" y2="11" class="axis"/>'
        '<line x1="100" x2="100" y1="2" y2="20" class="zero"/>'
        f'<rect x="{low:.1f}" y="7" width="{max(high - low, 1.5):.1f}" height="8" rx="4"/>'
        f'<circle cx="{x(found.difference):.1f}" cy="11" r="3.5"/></svg>'
    )


def _better(goal: Objective) -> str:
    return "more" if goal.mode == "max" else "less"


def _label(name: str) -> str:
    text = name.strip('"')
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
