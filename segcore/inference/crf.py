"""Fully connected CRF that fits class maps to an image's edges, by mean-field inference.

Reference: Krähenbühl & Koltun 2011, arXiv:1210.5644; as DeepLab's post-processing, Chen et al.
2015, arXiv:1412.7062.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.errors import OptionError, ShapeError
from segcore.inference.permutohedral import PermutohedralLattice

METHODS = ("auto", "exact", "lattice")
NORMALIZATIONS = ("symmetric", "none")

_EXACT_PIXELS = 4096  # "auto" sums over all pairs up to here, and keeps the kernel matrix
_CHUNK = 1 << 24  # kernel values held at a time beyond
_SMALLEST = 1e-20  # probability; keeps the unary term finite

# Sum over all j, j = i included, of k(f_i, f_j) v_j: [P, K] -> [P, K].
Filter = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DenseCRF:
    """Refine class probabilities of one image: crf(image, probabilities) -> probabilities.

    Mean-field of a Potts model in which all pixels are joined in pairs:
    Q_i(l) ~ exp(log p_i(l) - sum_{l' != l} sum_m w_m sum_{j != i} k_m(i, j) Q_j(l')), with
    k_1 = exp(-|x_i - x_j|^2 / 2 gaussian_sxy^2) over positions and k_2 the same over positions
    (bilateral_sxy) and colours (bilateral_srgb). The defaults are DeepLab-LargeFOV's.

    Args:
        iterations: mean-field updates.
        gaussian_sxy: standard deviation of k_1, pixels.
        gaussian_weight: its weight w_1; 0 leaves it out.
        bilateral_sxy: standard deviation of k_2 over positions, pixels.
        bilateral_srgb: standard deviation of k_2 over colours of 0..255.
        bilateral_weight: its weight w_2; 0 leaves it out.
        normalization: "symmetric" divides k(i, j) by sqrt(n_i n_j), n_i = sum_j k(i, j) with j = i,
            as the released programs do and their published weights suppose; "none" is the formula
            as printed.
        method: how k_2 is summed. "exact" takes all pairs (quadratic in the pixels), "lattice" a
            permutohedral lattice (linear; approximate), "auto" is exact up to 4096 pixels. k_1 is
            always exact, a product of one matrix for rows and one for columns.

    At 360 x 480 with 12 labels, 10 updates on the lattice take 1.2 s of one CPU core on rendered
    streets (benchmarks/crf.py), and took 3.9 s of a busy one on CamVid frames, which have more
    colours. On crops of those its labels differ from the exact sums' at 0.2 to 1.2 % of the pixels,
    where the CRF itself changes 4 to 32 %.

    Raises:
        OptionError: an option is out of its range.
    """

    iterations: int = 10
    gaussian_sxy: float = 3.0
    gaussian_weight: float = 3.0
    bilateral_sxy: float = 49.0
    bilateral_srgb: float = 5.0
    bilateral_weight: float = 4.0
    normalization: str = "symmetric"
    method: str = "auto"

    def __post_init__(self) -> None:
        widths = (self.gaussian_sxy, self.bilateral_sxy, self.bilateral_srgb)
        weights = (self.gaussian_weight, self.bilateral_weight)
        if self.iterations < 0 or min(widths) <= 0 or min(weights) < 0:
            raise OptionError(f"{self}: give iterations and weights >= 0, standard deviations > 0")
        if self.normalization not in NORMALIZATIONS or self.method not in METHODS:
            raise OptionError(
                f"{self}: give a normalization of {', '.join(NORMALIZATIONS)} and a method of "
                f"{', '.join(METHODS)}"
            )

    @torch.no_grad()
    def __call__(
        self, image: Tensor | NDArray[Any], probabilities: Tensor | NDArray[Any]
    ) -> Tensor:
        """Refined probabilities, on the device of the given ones.

        Shape:
            image: [H, W, C] uint8 (or float in 0..255)
            probabilities: [K, H, W] float in 0..1, summing to 1 over K; one map is a foreground's
            returns: as probabilities, float32

        Raises:
            ShapeError: the shapes do not belong together.
        """
        probabilities = torch.as_tensor(probabilities).float()
        image = torch.as_tensor(image).to(probabilities.device).float()
        if image.dim() != 3 or probabilities.dim() != 3 or 0 in probabilities.shape:
            raise ShapeError(
                f"image is {tuple(image.shape)}, probabilities {tuple(probabilities.shape)}: "
                "give [H, W, C] and [K, H, W]"
            )
        if image.shape[:2] != probabilities.shape[1:]:
            raise ShapeError(
                f"image is {tuple(image.shape)}, probabilities {tuple(probabilities.shape)}: "
                "give both at the same height and width"
            )
        if len(probabilities) == 1:
            pair = torch.cat([1 - probabilities, probabilities])
            return self._infer(image, pair)[1:]
        return self._infer(image, probabilities)

    def _infer(self, image: Tensor, probabilities: Tensor) -> Tensor:
        labels, height, width = probabilities.shape
        log_unary = probabilities.clamp_min(_SMALLEST).log().flatten(1).T.contiguous()
        messages = [
            (weight, self._message(kernel, own)) for weight, kernel, own in self._kernels(image)
        ]
        q = _softmax(log_unary)
        for _ in range(self.iterations):
            # Potts: what the other labels send differs from -(what l itself sends) by a constant.
            total = log_unary
            for weight, message in messages:
                total = total + weight * message(q)
            q = _softmax(total)
        return q.T.reshape(labels, height, width)

    def _kernels(self, image: Tensor) -> list[tuple[float, Filter, Tensor | float]]:
        """(weight, filter, share of a point's own value in the filter's answer) of each kernel."""
        kernels: list[tuple[float, Filter, Tensor | float]] = []
        if self.gaussian_weight:
            size = (image.shape[0], image.shape[1])
            blur = _gaussian_filter(size, self.gaussian_sxy, image.device)
            kernels.append((self.gaussian_weight, blur, 1.0))
        if self.bilateral_weight:
            features = self._features(image)
            small = len(features) <= _EXACT_PIXELS
            if self.method == "exact" or (self.method == "auto" and small):
                kernels.append((self.bilateral_weight, _pair_filter(features), 1.0))
            else:
                lattice = PermutohedralLattice(features)
                kernels.append((self.bilateral_weight, lattice.filter, lattice.own_share()))
        return kernels

    def _features(self, image: Tensor) -> Tensor:
        """Position and colour of each pixel in standard deviations: [P, 2 + C]."""
        height, width, channels = image.shape
        y = torch.arange(height, device=image.device, dtype=torch.float32)
        x = torch.arange(width, device=image.device, dtype=torch.float32)
        place = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1) / self.bilateral_sxy
        colour = image / self.bilateral_srgb
        return torch.cat([place, colour], -1).reshape(-1, 2 + channels)

    def _message(self, kernel: Filter, own: Tensor | float) -> Filter:
        """Sum over j != i of the normalised kernel times Q_j."""
        if self.normalization == "none":
            return lambda q: kernel(q) - own * q
        return _normalized(kernel, own)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the labels of [P, K]; on the CPU many times faster with labels first."""
    return scores.T.contiguous().softmax(0).T.contiguous()


def _normalized(kernel: Filter, own: Tensor | float) -> Filter:
    scale: Tensor | None = None

    def message(q: Tensor) -> Tensor:
        nonlocal scale
        if scale is None:
            scale = kernel(torch.ones_like(q[:, :1])).clamp_min(_SMALLEST).rsqrt()
        return scale * kernel(scale * q) - own * scale.square() * q

    return message


def _gaussian_filter(size: tuple[int, int], sigma: float, device: torch.device) -> Filter:
    """Sums over positions: the kernel is a product of one over rows and one over columns."""

    def line(length: int) -> Tensor:
        place = torch.arange(length, device=device, dtype=torch.float32) / sigma
        return torch.exp(-0.5 * (place[:, None] - place[None, :]).square())

    rows, columns = line(size[0]), line(size[1])

    def blur(values: Tensor) -> Tensor:
        maps = values.T.reshape(-1, *size)
        return (rows @ (maps @ columns)).flatten(1).T

    return blur


def _pair_filter(features: Tensor) -> Filter:
    """Sums over all pairs, in chunks of rows; a small kernel matrix is kept."""
    points = len(features)
    rows = points if points <= _EXACT_PIXELS else max(1, _CHUNK // points)

    def kernel(start: int) -> Tensor:
        distance = torch.cdist(
            features[start : start + rows],
            features,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return distance.square_().mul_(-0.5).exp_()

    kept = kernel(0) if rows == points else None

    def sums(values: Tensor) -> Tensor:
        if kept is not None:
            return kept @ values
        return torch.cat([kernel(start) @ values for start in range(0, points, rows)])

    return sums
