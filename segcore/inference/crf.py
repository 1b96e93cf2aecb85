"""Fully connected CRF that fits class maps to an image's edges, by mean-field inference.

Reference: Krähenbühl & Koltun 2011, arXiv:1210.5644; as DeepLab's post-processing, Chen et al.
2015, arXiv:1412.7062.
"""

import math
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
_REACH = 5.5  # standard deviations; beyond, 1e-7 of a Gaussian's sum is left
_BLOCK = 24  # rows or columns that are blurred at a time on CPUs
_SMALLEST = 1e-20  # probability; keeps the unary term finite


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

    At 360 x 480 with 12 labels, 10 updates on the lattice take 0.33 s of one CPU core and 105 MB on
    rendered streets (benchmarks/crf.py), 0.55 s where noise gives them many more colours. On crops
    of CamVid frames the lattice's labels differ from the exact sums' at 0.2 to 1.2 % of the pixels,
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
        """The updates, on maps [H, K, W]: as quick to blur as to sum over labels."""
        log_unary = probabilities.clamp_min(_SMALLEST).log_().transpose(0, 1).contiguous()
        kernels = self._kernels(image, log_unary.shape)
        own = torch.zeros_like(log_unary[:, :1])
        for kernel in kernels:
            own += kernel.own
        q, total = log_unary.softmax(1), torch.empty_like(log_unary)
        for _ in range(self.iterations):
            # Potts: what the other labels send differs from -(what l itself sends) by a constant.
            torch.addcmul(log_unary, own, q, value=-1, out=total)
            for kernel in kernels:
                kernel.add(q, total)
            torch.softmax(total, 1, out=q)
        return q.transpose(0, 1).contiguous()

    def _kernels(self, image: Tensor, shape: torch.Size) -> list["_Positions | _Points"]:
        """The normalised kernels, each with its weight, for maps of a shape [H, K, W]."""
        kernels: list[_Positions | _Points] = []
        symmetric = self.normalization == "symmetric"
        if self.gaussian_weight:
            sigma, weight = self.gaussian_sxy, self.gaussian_weight
            kernels.append(_Positions(shape, sigma, weight, symmetric, image.device))
        if self.bilateral_weight:
            features = self._features(image)
            small = len(features) <= _EXACT_PIXELS
            if self.method == "exact" or (self.method == "auto" and small):
                kernel: _Pairs | PermutohedralLattice = _Pairs(features)
            else:
                kernel = PermutohedralLattice(features)
            kernels.append(_Points(shape, kernel, self.bilateral_weight, symmetric))
        return kernels

    def _features(self, image: Tensor) -> Tensor:
        """Position and colour of each pixel in standard deviations: [P, 2 + C]."""
        height, width, channels = image.shape
        y = torch.arange(height, device=image.device, dtype=torch.float32)
        x = torch.arange(width, device=image.device, dtype=torch.float32)
        place = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1) / self.bilateral_sxy
        colour = image / self.bilateral_srgb
        return torch.cat([place, colour], -1).reshape(-1, 2 + channels)


class _Positions:
    """The kernel over positions, a product of one over rows and one over columns.

    Shape:
        own: [H, 1, W], the share of a pixel's own value in what `add` adds
    """

    def __init__(
        self, shape: torch.Size, sigma: float, weight: float, symmetric: bool, device: torch.device
    ) -> None:
        height, _, width = shape
        self._rows, rows = _bands(height, sigma, symmetric, device)
        self._columns, columns = _bands(width, sigma, symmetric, device)
        self._weight = weight
        self._blurred = torch.empty(shape, device=device)
        self.own = weight * rows[:, None, None] * columns

    def add(self, q: Tensor, total: Tensor) -> None:
        """Add the weighted sums over all pixels of maps [H, K, W]."""
        source, middle = q.flatten(1), self._blurred.flatten(1)
        for to, near, matrix in self._rows:
            torch.mm(matrix, source[near], out=middle[to])
        middle, target = self._blurred.flatten(0, 1), total.flatten(0, 1)
        for to, near, matrix in self._columns:
            target[:, to].addmm_(middle[:, near], matrix.T, alpha=self._weight)


def _bands(
    length: int, sigma: float, symmetric: bool, device: torch.device
) -> tuple[list[tuple[slice, slice, Tensor]], Tensor]:
    """Blocks of the matrix that blurs a line, without the values that are 0 to float32.

    Returns:
        The blocks, each with the places it fills and those it reads; and the diagonal.
    """
    reach = math.ceil(_REACH * sigma)
    block = max(_BLOCK if device.type == "cpu" else length, reach)
    place = torch.arange(length, device=device, dtype=torch.float32) / sigma
    bands, sums = [], torch.empty(length, device=device)
    for start in range(0, length, block):
        to, near = slice(start, start + block), slice(max(0, start - reach), start + block + reach)
        matrix = (place[to, None] - place[near]).square_().mul_(-0.5).exp_()
        sums[to] = matrix.sum(1)
        bands.append((to, near, matrix))
    if not symmetric:
        return bands, torch.ones_like(sums)
    scale = sums.rsqrt()
    for to, near, matrix in bands:
        matrix.mul_(scale[to, None]).mul_(scale[near])
    return bands, scale.square()


class _Points:
    """A kernel over the features of the pixels.

    Shape:
        own: [H, 1, W], the share of a pixel's own value in what `add` adds
    """

    def __init__(
        self,
        shape: torch.Size,
        kernel: "_Pairs | PermutohedralLattice",
        weight: float,
        symmetric: bool,
    ) -> None:
        height, labels, width = shape
        own = kernel.own_share()
        factor = torch.full_like(own, math.sqrt(weight))
        if symmetric:
            factor *= kernel.filter(torch.ones_like(own)).clamp_min_(_SMALLEST).rsqrt_()
        kernel.scale(factor.flatten())
        self._kernel = kernel
        self._values = own.new_empty(height, width, labels)
        self.own = (own * factor.square()).view(height, 1, width)

    def add(self, q: Tensor, total: Tensor) -> None:
        """Add the weighted sums over all pixels of maps [H, K, W]."""
        self._values.copy_(q.transpose(1, 2))
        sums = self._kernel.filter(self._values.flatten(0, 1))
        total.add_(sums.view_as(self._values).transpose(1, 2))


class _Pairs:
    """A Gaussian kernel summed over all pairs of points, in the manner of the lattice.

    Args:
        features: [P, d], in standard deviations.
    """

    def __init__(self, features: Tensor) -> None:
        self._features = features
        self._factor = features.new_ones(len(features), 1)
        self._kept = self._rows(slice(None)) if len(features) <= _EXACT_PIXELS else None

    def own_share(self) -> Tensor:
        """The part of `filter` by which each point's own value comes back: [P, 1]."""
        return torch.ones_like(self._factor)

    def scale(self, factor: Tensor) -> None:
        """Let the kernel be factor_i k(i, j) factor_j, factor [P], from here on."""
        self._factor = factor.unsqueeze(1)

    def filter(self, values: Tensor) -> Tensor:
        """The sums of values [P, K], in chunks of rows; a small kernel matrix is kept."""
        values = self._factor * values
        if self._kept is not None:
            return self._factor * (self._kept @ values)
        step = max(1, _CHUNK // len(values))
        parts = [slice(start, start + step) for start in range(0, len(values), step)]
        return self._factor * torch.cat([self._rows(part) @ values for part in parts])

    def _rows(self, part: slice) -> Tensor:
        distance = torch.cdist(
            self._features[part],
            self._features,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return distance.square_().mul_(-0.5).exp_()
