"""Is the candidate better than the champion? A paired bootstrap over the test images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segcore.errors import OptionError

Matrices = NDArray[np.int64]
Figure = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Verdict = Literal["promoted", "rejected", "undecided", "unchanged"]

CHUNK = 256


@dataclass(frozen=True)
class Comparison:
    """Figures of candidate against champion on the same images.

    Args:
        candidate: its figure on the whole split.
        champion: its figure on the whole split.
        difference: candidate minus champion.
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
    candidate: Matrices,
    champion: Matrices,
    *,
    figure: Figure,
    margin: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> Comparison:
    """Resample the images with replacement, both models on the same draw.

    An image drawn three times counts three times: each draw is a vector of multiplicities that
    weights the per-image confusion matrices before they are summed, so that the figure of a
    resample is the figure of a split, not a mean over images.

    Args:
        candidate: per-image confusion matrices [B, K, K].
        champion: of the same images in the same order.
        figure: summed matrices [R, K, K] -> figures [R]; NaN where it is not defined.
        margin: difference above which the candidate counts as better.
        confidence: of the two-sided percentile interval, in 0..1.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        OptionError: there is no image, or the two differ in shape.

    Reference: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
    """
    if candidate.shape != champion.shape or len(candidate) == 0:
        raise OptionError(
            f"candidate has matrices {candidate.shape}, champion {champion.shape}: "
            "evaluate both on the same, not empty, images"
        )
    count = len(candidate)
    generator = np.random.default_rng(seed)
    differences = np.concatenate(
        [
            _difference(candidate, champion, figure, _draws(generator, count, rows))
            for rows in _chunks(resamples)
        ]
    )
    differences = differences[np.isfinite(differences)]
    whole = np.ones((1, count))
    own, other = (float(figure(_weighted(m, whole))[0]) for m in (candidate, champion))
    if differences.size == 0:
        return Comparison(own, other, own - other, np.nan, np.nan, np.nan, count)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return Comparison(
        candidate=own,
        champion=other,
        difference=own - other,
        low=float(low),
        high=float(high),
        probability=float(np.mean(differences > margin)),
        images=count,
    )


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


def _weighted(matrices: Matrices, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of matrices by weights [R, B]; exact, since pixel counts stay below 2**53."""
    classes = matrices.shape[1]
    sums = weights @ matrices.reshape(len(matrices), -1).astype(np.float64)
    return sums.reshape(-1, classes, classes)


def _difference(
    candidate: Matrices, champion: Matrices, figure: Figure, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    return figure(_weighted(candidate, weights)) - figure(_weighted(champion, weights))
