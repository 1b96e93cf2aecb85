"""Class weights: CamVid's published statistics, worked examples, what is refused."""

import math

import numpy as np
import pytest
import torch

from segcore.errors import OptionError
from segcore.losses import Loss, PixelCounts, class_weights_from_counts, create_loss

# CamVid's training split: pixels of each class as shares of 367 images of 360 x 480, and the
# images that contain it; the weights are worked out in the data's description.
CAMVID_SHARES = [16.845, 23.259, 0.983, 31.658, 4.486, 9.724, 1.173, 1.127, 5.866, 0.639, 0.292]
CAMVID_IMAGES = [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201]
CAMVID_WEIGHTS = [
    0.2793, 0.2017, 4.7865, 0.1490, 1.0000, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587,
]  # fmt: skip


def camvid_counts() -> PixelCounts:
    image = 360 * 480
    pixels = [round(share / 100 * 367 * image) for share in CAMVID_SHARES]
    around = [number * image for number in CAMVID_IMAGES]
    return PixelCounts(pixels=pixels, image_pixels=around, total=sum(pixels))


def test_median_frequency_weights_of_camvid() -> None:
    weights = class_weights_from_counts("median_frequency", camvid_counts())
    assert weights is not None
    # The shares are given to three decimals, hence the tolerance for the rare classes.
    np.testing.assert_allclose(weights.numpy(), CAMVID_WEIGHTS, rtol=2e-3)
    assert weights[4] == 1


def test_inverse_log_weights() -> None:
    counts = PixelCounts(pixels=[75, 25, 0], image_pixels=[100, 100, 0], total=100)
    weights = class_weights_from_counts("inverse_log", counts)
    assert weights is not None
    expected = [1 / math.log(1.77), 1 / math.log(1.27), 50.4983]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-5)
    root = class_weights_from_counts("sqrt_inverse_log", counts)
    assert root is not None
    np.testing.assert_allclose(root.numpy() ** 2, expected, rtol=1e-5)


def test_absent_class_has_weight_zero_by_median_frequency() -> None:
    counts = PixelCounts(pixels=[75, 25, 0], image_pixels=[100, 50, 0], total=100)
    weights = class_weights_from_counts("median_frequency", counts)
    assert weights is not None
    np.testing.assert_allclose(weights.numpy(), [0.625 / 0.75, 0.625 / 0.5, 0.0])


def test_class_weight_kinds() -> None:
    empty = PixelCounts(pixels=[0, 0], image_pixels=[0, 0], total=0)
    assert class_weights_from_counts("none", empty) is None
    with pytest.raises(OptionError, match="no labelled pixel"):
        class_weights_from_counts("inverse_log", empty)
    with pytest.raises(OptionError, match="median_frequency"):
        class_weights_from_counts("median", empty)


def test_class_weights_are_kept_apart_from_the_callers() -> None:
    weights = torch.tensor([1.0, 2.0])
    loss = create_loss("dice", num_classes=2, class_weights=weights)
    weights[0] = 9
    assert isinstance(loss, Loss)
    assert loss.class_weights is not None
    assert loss.class_weights.tolist() == [1.0, 2.0]
