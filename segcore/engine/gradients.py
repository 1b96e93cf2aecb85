"""How large the gradients of each layer are: shows where they vanish or explode."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOWEST, HIGHEST = -10, 4  # decades; what lies beyond goes to the first and the last bin
BINS_PER_DECADE = 4
BINS = (HIGHEST - LOWEST) * BINS_PER_DECADE
EDGES = tuple(10.0 ** (LOWEST + i / BINS_PER_DECADE) for i in range(BINS + 1))


@dataclass(frozen=True)
class GradientHistogram:
    """Magnitudes of one layer's gradients, on a logarithmic scale.

    Args:
        counts: elements by magnitude; bin i is EDGES[i] <= |g| < EDGES[i + 1], and the first and
            the last bin also hold what is smaller and larger.
        zeros: elements that are exactly 0; in no bin.
        not_finite: elements that are NaN or infinite; in no bin.
        rms: root mean square of the finite elements.
    """

    counts: tuple[int, ...]
    zeros: int
    not_finite: int
    rms: float


def gradient_histograms(model: nn.Module) -> dict[str, GradientHistogram]:
    """Histograms of the gradients that a model holds now, by layer in order of registration.

    A layer is a module with parameters of its own: weight and bias count together. Layers without
    a gradient (frozen, or not yet trained) are left out.
    """
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            layer = name.rpartition(".")[0] or name
            layers.setdefault(layer, []).append(parameter.grad.detach().flatten())
    return {layer: _histogram(torch.cat(parts)) for layer, parts in layers.items()}


def _histogram(gradient: Tensor) -> GradientHistogram:
    magnitude = gradient.abs().float()
    finite = magnitude.isfinite()
    filled = finite & (magnitude > 0)
    edges = torch.tensor(EDGES, device=magnitude.device)
    bins = torch.bucketize(magnitude, edges, right=True).sub_(1).clamp_(0, BINS - 1)
    # Elements that belong nowhere are counted in a bin of their own: selecting them would wait.
    counts = torch.bincount(bins.masked_fill_(~filled, BINS), minlength=BINS + 1)[:BINS]
    square = magnitude.double().masked_fill_(~finite, 0.0).square_().sum()
    count = int(finite.sum())
    return GradientHistogram(
        counts=tuple(counts.tolist()),
        zeros=int((magnitude == 0).sum()),
        not_finite=len(gradient) - count,
        rms=float(square / max(count, 1)) ** 0.5,
    )
