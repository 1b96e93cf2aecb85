"""Test-time augmentation: the mean over mirrored and resized passes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from segcore.errors import UnknownNameError
from segcore.inference.augmented import Augmented
from segcore.inference.predictor import Predictor
from segcore.inference.spec import PackageSpec

SPEC = PackageSpec(
    architecture="slanted", num_classes=3, classes=("a", "b", "c"),
    palette=((0, 0, 0), (9, 9, 9), (99, 99, 99)), mean=(0.5,) * 3, std=(0.2,) * 3,
)  # fmt: skip


class Slanted(nn.Module):
    """A network that a mirror would not leave alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": 3 * self.layer(x)}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 52, 3)).astype(np.uint8)


def test_flip_is_the_mean_of_both_probabilities(image: np.ndarray) -> None:
    network = Predictor(Slanted(), SPEC).network
    pixels = torch.from_numpy(image)[None]
    here = network(pixels).softmax(1)
    mirrored = network(pixels.flip(2)).softmax(1).flip(3)
    found = Augmented(network, ["flip"])(pixels)
    torch.testing.assert_close(found.exp(), (here + mirrored) / 2, rtol=1e-5, atol=1e-6)


def test_a_mirrored_image_has_the_mirrored_prediction(image: np.ndarray) -> None:
    predictor = Predictor(Slanted(), SPEC, tta=["flip", "scale"])
    here, there = predictor([image, np.ascontiguousarray(image[:, ::-1])])
    assert (here.mask == there.mask[:, ::-1]).mean() > 0.999
    alone = Predictor(Slanted(), SPEC)([image, np.ascontiguousarray(image[:, ::-1])])
    assert (alone[0].mask == alone[1].mask[:, ::-1]).mean() < 0.9


def test_scale_looks_at_three_sizes(image: np.ndarray) -> None:
    network = Predictor(Slanted(), SPEC).network
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    total = torch.zeros(1, 3, 40, 52)
    for size in ((30, 39), (40, 52), (50, 65)):
        part = functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
        scores = network(part.round().clamp(0, 255).byte().permute(0, 2, 3, 1))
        total += functional.interpolate(scores, size=(40, 52), mode="bilinear").softmax(1)
    found = Augmented(network, ["scale"])(torch.from_numpy(image)[None])
    torch.testing.assert_close(found.exp(), total / 3, rtol=1e-4, atol=1e-5)


def test_confidence_is_that_of_the_mean(image: np.ndarray) -> None:
    predictor = Predictor(Slanted(), SPEC, tta=["flip"], confidence=True)
    found = predictor(image)[0]
    shares = predictor.network(torch.from_numpy(image)[None]).exp()[0]
    np.testing.assert_allclose(found.confidence, shares.amax(0).numpy(), rtol=1e-5)
    assert predictor(image, confidence=False)[0].confidence is None


def test_tiles_are_augmented_too(image: np.ndarray) -> None:
    large = np.tile(image, (16, 16, 1))
    whole = Predictor(Slanted(), SPEC, tta=["flip"])(large)[0].mask
    tiled = Predictor(Slanted(), SPEC, tta=["flip"], max_memory_gib=0.02)(large)[0].mask
    assert (whole == tiled).mean() > 0.99


def test_another_way_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="flp"):
        Predictor(Slanted(), SPEC, tta=["flp"])
