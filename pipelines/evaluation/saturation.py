"""A saturating curve through figures by number of labels, and what more labels would bring.

figure(n) = limit - loss * n ** -rate, the power law that errors follow over orders of magnitude of
data (Hestness et al. 2017, arXiv:1712.00409). Its uncertainty has two parts: that of the test
images, by the figures under resamples of them, and that of the training runs, by how far the points
lie from the curve.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.errors import OptionError

Floats = NDArray[np.float64]
RATES = np.linspace(0.05, 2.0, 79)
PARAMETERS = 3
MOST = 1.0  # that any figure can be


@dataclass(frozen=True, eq=False)
class Curves:
    """One curve a row.

    Args:
        limit: [R], the figure of endlessly many labels, at most MOST.
        loss: [R], >= 0.
        rate: [R], > 0.
    """

    limit: Floats
    loss: Floats
    rate: Floats

    def at(self, labels: Floats) -> Floats:
        """Figures [R, P] at numbers of labels [P]."""
        return self.limit[:, None] - self.loss[:, None] * labels ** -self.rate[:, None]


@dataclass(frozen=True)
class Gain:
    """What more labels would bring.

    Args:
        labels: there are now.
        more: of them.
        value: by which the figure would rise, by the curve through the points.
        low: lower end of the interval.
        high: its upper end.
    """

    labels: int
    more: int
    value: float
    low: float
    high: float


def fit(labels: Floats, figures: Floats) -> Curves:
    """The curve with the least squared distance for each row of figures.

    Args:
        labels: numbers of labels [P], above 0, not all alike.
        figures: [R, P].

    Raises:
        OptionError: fewer than three numbers of labels, which say nothing of a curve.
    """
    if len(np.unique(labels)) < PARAMETERS:
        raise OptionError(
            f"there are points at {len(np.unique(labels))} numbers of labels: a curve needs "
            f"{PARAMETERS}; give more fractions"
        )
    best = np.full(len(figures), np.inf)
    found = np.zeros((3, len(figures)))
    for rate in RATES:
        falling = labels**-rate
        limit, loss = _line(falling, figures)
        error = ((limit[:, None] - loss[:, None] * falling - figures) ** 2).sum(1)
        closer = error < best
        best[closer] = error[closer]
        found[:, closer] = np.stack([limit, loss, np.full_like(limit, rate)])[:, closer]
    return Curves(*found)


def _line(falling: Floats, figures: Floats) -> tuple[Floats, Floats]:
    """Least squares of limit - loss * falling, with loss >= 0 and limit <= MOST."""
    center, means = falling.mean(), figures.mean(1)
    slopes = (figures - means[:, None]) @ (falling - center) / ((falling - center) ** 2).sum()
    loss = np.maximum(-slopes, 0.0)
    limit = means + loss * center
    capped = limit > MOST
    at_most = np.maximum(((MOST - figures) @ falling) / (falling**2).sum(), 0.0)
    return np.where(capped, MOST, limit), np.where(capped, at_most, loss)


def spread(labels: Floats, figures: Floats, resampled: Floats, *, seed: int) -> Curves:
    """Curves through figures as they might have come out.

    Args:
        labels: [P].
        figures: of the whole test split [P].
        resampled: figures under resamples of its images [R, P].
        seed: of the part that stands for other training runs: normal, as wide as the points lie
            from the curve through `figures`.
    """
    curve = fit(labels, figures[None])
    free = max(1, len(labels) - PARAMETERS)
    width = np.sqrt(((curve.at(labels)[0] - figures) ** 2).sum() / free)
    noise = np.random.default_rng(seed).normal(0.0, 1.0, resampled.shape)
    return fit(labels, resampled + width * noise)


def gain(curve: Curves, curves: Curves, *, labels: int, more: int, confidence: float) -> Gain:
    """What `more` labels beyond `labels` would bring.

    Args:
        curve: the one through the figures.
        curves: of `spread`.
        confidence: of the two-sided interval, in 0..1.
    """
    places = np.array([labels, labels + more], np.float64)
    rises = np.diff(curves.at(places), axis=1)[:, 0]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(rises, [tail, 1.0 - tail])
    return Gain(labels, more, float(np.diff(curve.at(places)[0])[0]), float(low), float(high))
