"""Dense CRF: against a mean-field written out over all pairs, and at a real image's size."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segcore.errors import OptionError, ShapeError
from segcore.inference.crf import DenseCRF, _Pairs, _Positions
from segcore.inference.permutohedral import PermutohedralLattice


def scene(height: int, width: int, labels: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """An image of flat regions with noise, its regions, and blurred, noisy probabilities of them.

    Shape:
        returns: image uint8 [H, W, 3], regions int64 [H, W], probabilities [K, H, W]
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(height).view(-1, 1) / height
    x = torch.arange(width).view(1, -1) / width
    regions = ((2 * y + torch.sin(5 * x)) * labels / 3).long().clamp(0, labels - 1)
    colours = torch.randint(20, 235, (labels, 3), generator=generator).float()
    noise = 3 * torch.randn(height, width, 3, generator=generator)
    image = (colours[regions] + noise).clamp(0, 255).to(torch.uint8)
    sharp = torch.nn.functional.one_hot(regions, labels).permute(2, 0, 1).float()
    coarse = torch.nn.functional.avg_pool2d(sharp[None], 5, stride=1, padding=2)[0]
    logits = 2 * coarse + torch.randn(coarse.shape, generator=generator)
    return image, regions, logits.softmax(0)


def brute_force(crf: DenseCRF, image: Tensor, probabilities: Tensor) -> Tensor:
    """The update as printed, over all pairs i != j and all labels, in float64."""
    labels, height, width = probabilities.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(float)
    colour = image.numpy().reshape(height * width, -1).astype(float)
    place = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    shade = ((colour[:, None] - colour[None]) ** 2).sum(-1)
    smooth = np.exp(-place / (2 * crf.gaussian_sxy**2))
    appearance = np.exp(-place / (2 * crf.bilateral_sxy**2) - shade / (2 * crf.bilateral_srgb**2))
    pairwise = np.zeros_like(smooth)
    for weight, kernel in (
        (crf.gaussian_weight, smooth),
        (crf.bilateral_weight, appearance),
    ):
        if crf.normalization == "symmetric":
            norm = kernel.sum(1)
            kernel = kernel / np.sqrt(norm[:, None] * norm[None])
        pairwise += weight * kernel
    np.fill_diagonal(pairwise, 0)
    unary = -np.log(probabilities.double().numpy().reshape(labels, -1).T)
    potts = 1 - np.eye(labels)
    q = np.exp(-unary)
    q /= q.sum(1, keepdims=True)
    for _ in range(crf.iterations):
        energy = unary + pairwise @ q @ potts
        q = np.exp(-(energy - energy.min(1, keepdims=True)))
        q /= q.sum(1, keepdims=True)
    return torch.from_numpy(q.T.reshape(labels, height, width))


@pytest.mark.parametrize("labels", [2, 5, 21])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bilateral_sxy": 8.0, "bilateral_srgb": 20.0, "iterations": 3},
        {"normalization": "none", "gaussian_weight": 0.05, "bilateral_weight": 0.02},
    ],
)
def test_exact_equals_brute_force(options: dict[str, Any], labels: int) -> None:
    image, _, probabilities = scene(17, 22, labels)
    crf = DenseCRF(**options)
    refined = crf(image, probabilities)
    expected = brute_force(crf, image, probabilities)
    assert (expected - probabilities).abs().max() > 0.05
    torch.testing.assert_close(refined.double(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(refined.sum(0), torch.ones(17, 22))


def test_chunks_of_pairs_equal_the_whole_matrix() -> None:
    features = torch.randn(4500, 5, generator=torch.Generator().manual_seed(0))
    values = torch.rand(4500, 3, generator=torch.Generator().manual_seed(1))
    whole = torch.exp(-torch.cdist(features, features).square() / 2) @ values
    torch.testing.assert_close(_Pairs(features).filter(values), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"bilateral_sxy": 20.0, "bilateral_srgb": 13.0}])
def test_lattice_is_close_to_brute_force(options: dict[str, Any]) -> None:
    image, _, probabilities = scene(40, 44, 4)
    crf = DenseCRF(**options, method="lattice")
    refined = crf(image, probabilities)
    expected = brute_force(crf, image, probabilities)
    changed = (expected.argmax(0) != probabilities.argmax(0)).float().mean()
    differ = (expected.argmax(0) != refined.argmax(0)).float().mean()
    assert changed > 0.2
    assert differ < 0.02
    assert (expected - refined).abs().mean() < 0.02


def test_refines_noisy_probabilities() -> None:
    image, regions, probabilities = scene(60, 70, 4)
    before = (probabilities.argmax(0) == regions).float().mean()
    after = (DenseCRF(method="lattice")(image, probabilities).argmax(0) == regions).float().mean()
    assert before < 0.8
    assert after > 0.97


def test_usable_at_360_by_480() -> None:
    image, regions, probabilities = scene(360, 480, 12)
    refined = DenseCRF()(image, probabilities)
    assert (refined.argmax(0) == regions).float().mean() > 0.97


def test_grey_image_one_map_and_arrays() -> None:
    image, _, probabilities = scene(12, 15, 2)
    grey = image[..., :1]
    both = DenseCRF()(grey, probabilities)
    one = DenseCRF()(grey.numpy(), probabilities[1:].numpy())
    torch.testing.assert_close(one, both[1:])
    rest = DenseCRF(iterations=0)(grey, probabilities)
    torch.testing.assert_close(rest, probabilities)


def test_certain_probabilities_stay_finite() -> None:
    image, regions, _ = scene(12, 15, 3)
    sharp = torch.nn.functional.one_hot(regions, 3).permute(2, 0, 1).float()
    assert torch.isfinite(DenseCRF()(image, sharp)).all()


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_lattice_sums_a_gaussian(dims: int) -> None:
    points = torch.randn(3000, dims, generator=torch.Generator().manual_seed(0)) * 0.8
    values = torch.rand(3000, 2, generator=torch.Generator().manual_seed(1))
    exact = torch.exp(-torch.cdist(points, points).square() / 2) @ values
    ratio = PermutohedralLattice(points).filter(values) / exact
    assert ratio.mean() == pytest.approx(1, abs=0.1)
    assert ratio.std() < 0.1


def test_lattice_knows_a_points_own_share() -> None:
    points = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    lattice = PermutohedralLattice(points)
    own = lattice.filter(torch.eye(3000)[:, :200])[:200].diagonal()
    torch.testing.assert_close(lattice.own_share()[:200, 0], own, rtol=0.25, atol=0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("sigma", [0.4, 3.0, 20.0])
def test_blur_in_bands_equals_the_whole_matrix(sigma: float, symmetric: bool) -> None:
    maps = torch.rand(70, 2, 101, generator=torch.Generator().manual_seed(0))
    place = torch.cartesian_prod(torch.arange(70.0), torch.arange(101.0)) / sigma
    kernel = torch.exp(-torch.cdist(place.double(), place.double()).square() / 2)
    if symmetric:
        norm = kernel.sum(1).rsqrt()
        kernel = norm[:, None] * kernel * norm
    expected = kernel @ maps.transpose(1, 2).reshape(-1, 2).double()
    positions = _Positions(maps.shape, sigma, 1.0, symmetric, maps.device)
    total = torch.zeros_like(maps)
    positions.add(maps, total)
    sums = total.transpose(1, 2).reshape(-1, 2).double()
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)
    own = positions.own.flatten().double()
    torch.testing.assert_close(own, kernel.diagonal(), rtol=1e-5, atol=0)


def test_lattice_takes_a_factor_of_each_point() -> None:
    points = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    values = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(1))
    factor = torch.rand(20_000, generator=torch.Generator().manual_seed(2))
    lattice = PermutohedralLattice(points)
    expected = factor[:, None] * lattice.filter(factor[:, None] * values)
    lattice.scale(factor)
    torch.testing.assert_close(lattice.filter(values), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": -1},
        {"bilateral_srgb": 0.0},
        {"gaussian_weight": -1.0},
        {"method": "fast"},
        {"normalization": "rows"},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="give"):
        DenseCRF(**options)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="same height and width"):
        DenseCRF()(torch.zeros(4, 5, 3), torch.ones(2, 5, 4) / 2)
    with pytest.raises(ShapeError, match=r"\[K, H, W\]"):
        DenseCRF()(torch.zeros(4, 5), torch.ones(2, 4, 5) / 2)
