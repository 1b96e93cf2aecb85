"""The paired bootstrap against hand-made cases and a slow, plain version of itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scoring.bootstrap import Comparison, Figure, compare, decide
from segcore.errors import OptionError
from segcore.metrics import scores
from segcore.tasks.semantic.confusions import Matrices, figures


def miou(matrices: Matrices) -> Figure:
    return lambda weights: figures(matrices, weights)["miou"]


def run(candidate: Matrices, champion: Matrices, *, resamples: int = 500) -> Comparison:
    return compare(
        miou(candidate),
        miou(champion),
        images=len(candidate),
        margin=0.0,
        confidence=0.95,
        resamples=resamples,
        seed=0,
    )


def random_matrices(seed: int, images: int, right: int) -> Matrices:
    matrices = np.random.default_rng(seed).integers(0, 50, (images, 3, 3))
    matrices[:, range(3), range(3)] += right
    return matrices


def test_better_everywhere_is_promoted() -> None:
    found = run(random_matrices(0, 30, 400), random_matrices(1, 30, 50))
    assert found.low > 0
    assert found.probability == 1.0
    assert decide(found, 0.0) == "promoted"
    assert decide(found, 0.9) == "rejected"


def test_same_model_is_undecided() -> None:
    matrices = random_matrices(0, 20, 100)
    found = run(matrices, matrices)
    assert (found.difference, found.low, found.high, found.probability) == (0, 0, 0, 0)
    assert decide(found, 0.0) == "undecided"


def test_worse_everywhere_is_rejected() -> None:
    assert decide(run(random_matrices(1, 30, 50), random_matrices(0, 30, 400)), 0.0) == "rejected"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_equals_resampling_images_one_by_one(seed: int, images: int) -> None:
    candidate, champion = random_matrices(seed, images, 60), random_matrices(seed + 1, images, 50)
    found = run(candidate, champion, resamples=100)
    generator = np.random.default_rng(0)
    counts = generator.multinomial(images, np.full(images, 1 / images), size=100)
    differences = []
    for draw in counts:
        chosen = np.repeat(np.arange(images), draw)  # an image drawn twice is there twice
        own, other = candidate[chosen].sum(0), champion[chosen].sum(0)
        differences.append(float(scores(own).miou) - float(scores(other).miou))
    assert found.low == pytest.approx(np.quantile(differences, 0.025))
    assert found.high == pytest.approx(np.quantile(differences, 0.975))


def test_pairing_narrows_the_interval() -> None:
    hard = np.random.default_rng(0).integers(0, 300, 40)  # errors that both models share
    base = np.zeros((40, 2, 2), np.int64)
    base[:, 0, 0], base[:, 1, 1], base[:, 0, 1] = 400, 400, hard
    better = base.copy()
    better[:, 1, 1] += 6
    paired = run(better, base)
    shuffled = run(better, base[np.random.default_rng(1).permutation(40)])
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)
    assert decide(paired, 0.0) == "promoted"


def test_no_images_is_refused() -> None:
    nothing = np.zeros((0, 3, 3), np.int64)
    with pytest.raises(OptionError, match="not empty"):
        run(nothing, nothing)
