"""Test-time augmentation: the mean over several looks at the same image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from segcore.errors import unknown_name
from segcore.inference.network import PixelNetwork

WAYS = ("flip", "scale")
SCALES = (0.75, 1.0, 1.25)
LEAST = 1e-12  # a probability whose logarithm is finite


class Augmented:
    """A network that looks at mirrored and resized images as well.

    Args:
        network: what makes scores.
        ways: "flip": also the mirror image; "scale": at 0.75 and 1.25 of the size as well. Both
            together are six passes.

    Raises:
        UnknownNameError: another way.
    """

    def __init__(self, network: PixelNetwork, ways: Sequence[str]) -> None:
        for way in ways:
            if way not in WAYS:
                raise unknown_name("test-time augmentation", way, WAYS)
        self.network = network
        self.model = network.model
        self.scales = SCALES if "scale" in ways else (1.0,)
        self.mirrors = (False, True) if "flip" in ways else (False,)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Logarithms of the mean probabilities [N, K, H, W] of uint8 pixels [N, H, W, C]."""
        height, width = pixels.shape[1:3]
        total = torch.zeros(())
        for scale in self.scales:
            sized = _resized(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
            for mirror in self.mirrors:
                scores = self.network(sized.flip(2) if mirror else sized)
                scores = scores.flip(3) if mirror else scores
                if scores.shape[-2:] != (height, width):
                    scores = functional.interpolate(
                        scores, size=(height, width), mode="bilinear", align_corners=False
                    )
                total = total + scores.softmax(1)
        return total.div_(len(self.scales) * len(self.mirrors)).clamp_(min=LEAST).log_()

    def bytes_per_pixel(self) -> float:
        """Of the largest pass."""
        return self.network.bytes_per_pixel() * max(self.scales) ** 2


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, H, W, C] at another size, bilinear with antialiasing."""
    if pixels.shape[1:3] == size:
        return pixels
    planes = pixels.permute(0, 3, 1, 2).float()
    planes = functional.interpolate(
        planes, size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
