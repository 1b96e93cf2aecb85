"""Is the candidate better than the champion? A paired bootstrap over the test images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segcore.errors import OptionError

Figure = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Verdict = Literal["promoted", "rejected", "undecided", "unchanged"]

CHUNK = 256


@dataclass(frozen=True)
class Comparison:
    """Figures of candidate against champion on the same images.

    Args:
        candidate: its figure on the whole split.
        champion: its figure on the whole split.
        difference: by how much the candidate is better: candidate minus champion, or champion
            minus candidate where less is better.
        low: lower end of the confidence interval of the difference.
        high: its upper end.
        probability: share of resamples in which the difference exceeds the margin.
        images: number of images.
    """

    candidate: float
    champion: float
    difference: float
    low: float
    high: float
    probability: float
    images: int


def compare(
    candidate: Figure,
    champion: Figure,
    *,
    images: int,
    margin: float,
    confidence: float,
    resamples: int,
    seed: int,
    mode: str = "max",
) -> Comparison:
    """Resample the images with replacement, both models on the same draw.

    An image drawn three times counts three times: each draw is a vector of multiplicities that
    weights the records of the images, so that the figure of a resample is the figure of a split,
    not a mean over images.

    Args:
        candidate: weights of the images [R, B] -> figures [R]; NaN where it is not defined.
        champion: of the same images in the same order.
        images: their number B.
        margin: difference above which the candidate counts as better.
        confidence: of the two-sided percentile interval, in 0..1.
        resamples: number of draws.
        seed: of the draws.
        mode: "max" or "min": which figures are better.

    Raises:
        OptionError: there is no image.

    Reference: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
    """
    if images == 0:
        raise OptionError("there are 0 images: evaluate both on the same, not empty, images")
    sign = 1.0 if mode == "max" else -1.0
    generator = np.random.default_rng(seed)
    differences = np.concatenate(
        [
            sign * (candidate(draws) - champion(draws))
            for draws in (_draws(generator, images, rows) for rows in _chunks(resamples))
        ]
    )
    differences = differences[np.isfinite(differences)]
    whole = np.ones((1, images))
    own, other = (float(figure(whole)[0]) for figure in (candidate, champion))
    difference = sign * (own - other)
    if differences.size == 0:
        return Comparison(own, other, difference, np.nan, np.nan, np.nan, images)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return Comparison(
        candidate=own,
        champion=other,
        difference=difference,
        low=float(low),
        high=float(high),
        probability=float(np.mean(differences > margin)),
        images=images,
    )


def resampled(figure: Figure, *, images: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """A figure [R] under resamples of the images; equal ones for equal arguments.

    Args:
        figure: weights of the images [R, B] -> figures [R].
        images: their number B.
        resamples: number of draws R.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    return np.concatenate([figure(_draws(generator, images, rows)) for rows in _chunks(resamples)])


def decide(comparison: Comparison, margin: float) -> Verdict:
    """Promoted if the interval lies above the margin, rejected if below, undecided if across."""
    if comparison.low > margin:
        return "promoted"
    if comparison.high < margin:
        return "rejected"
    return "undecided"


def _chunks(total: int) -> list[int]:
    return [min(CHUNK, total - start) for start in range(0, total, CHUNK)]


def _draws(generator: np.random.Generator, count: int, rows: int) -> NDArray[np.float64]:
    return generator.multinomial(count, np.full(count, 1.0 / count), size=rows).astype(np.float64)
