"""An exported file beside torch, on images of several sizes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from segcore.errors import ExportError
from segcore.export.facts import said
from segcore.inference.spec import PackageSpec

# Batch, height, width; the last is wider than any architecture's window.
SIZES = ((1, 75, 101), (3, 32, 33), (2, 64, 96), (1, 131, 47), (1, 40, 230))
LEAST_SHARE = 0.999
COARSE = 8  # pixels a side of what is smooth in the images


@dataclass(frozen=True)
class Agreement:
    """How far two computations of one network agree.

    Args:
        labels: share of the pixels with the same class.
        difference: largest, of a logit, as a share of the largest logit of those images.
        sizes: (batch, height, width) of the images.
    """

    labels: float
    difference: float
    sizes: tuple[tuple[int, int, int], ...]

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for _, height, width in self.sizes)
        return (
            f"same class on {100 * self.labels:.4g} % of the pixels at {sizes}, logits within "
            f"{self.difference:.1g} of the largest"
        )


@torch.inference_mode()
def compare(graph: nn.Module, exported: nn.Module, spec: PackageSpec) -> Agreement:
    """Run both on the same images, smooth ones with noise.

    Raises:
        ExportError: the exported one fails, or labels more than 0.1 % of the pixels otherwise.
    """
    same, pixels, largest = 0, 0, 0.0
    for seed, size in enumerate(SIZES):
        image = picture(size, spec.in_channels, seed)
        expected = graph(image)
        try:
            found = exported(image)
        except Exception as error:  # whatever a runtime raises
            raise ExportError(
                f"{spec.architecture} was written, but does not run on {tuple(image.shape)}: "
                f"{said(error)}"
            ) from error
        if found.shape != expected.shape:
            raise ExportError(
                f"{spec.architecture} was written, but returns {tuple(found.shape)} for an image "
                f"of {tuple(image.shape)}, torch {tuple(expected.shape)}"
            )
        labels = expected.argmax(1)
        same += int((found.argmax(1) == labels).sum())
        pixels += labels.numel()
        apart, scale = (float(values.abs().max()) for values in (found - expected, expected))
        largest = max(largest, apart / scale if scale else apart)
    agreement = Agreement(same / pixels, largest, SIZES)
    if agreement.labels < LEAST_SHARE:
        raise ExportError(
            f"{spec.architecture} was written, but does not compute what torch does: {agreement}; "
            f"at least {100 * LEAST_SHARE:g} % are asked for"
        )
    return agreement


def picture(size: tuple[int, int, int], channels: int, seed: int) -> Tensor:
    """Images uint8 [N, C, H, W]: soft blots under noise."""
    count, height, width = size
    generator = torch.Generator().manual_seed(seed)
    coarse = (count, channels, height // COARSE + 1, width // COARSE + 1)
    blots = torch.rand(coarse, generator=generator)
    smooth = functional.interpolate(blots, size=(height, width), mode="bilinear")
    noise = torch.randn(count, channels, height, width, generator=generator)
    return (255 * smooth + 12 * noise).clamp(0, 255).to(torch.uint8)
