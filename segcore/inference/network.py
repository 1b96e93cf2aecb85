"""The forward pass of inference: uint8 pixels to scores, on a device, at a precision."""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from segcore.errors import OptionError, SegcoreError
from segcore.inference.folding import fold_batch_norms
from segcore.inference.memory import PROBE, SURE_BYTES, bytes_per_pixel
from segcore.inference.spec import PackageSpec

PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MIN_SIDE = 32

# Autocast would cast the weights of these anew in every pass: its cache is for training alone.
_CAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class PixelNetwork(Protocol):
    """What makes scores of pixels, whatever computes them.

    `model` is what runs inside.
    """

    model: nn.Module

    def __call__(self, pixels: Tensor) -> Tensor:
        """Scores [N, K, H, W] in float32 of uint8 pixels [N, H, W, C] of any size."""

    def bytes_per_pixel(self) -> float:
        """Memory that a pass takes, by pixel of its input."""


class Network:
    """A semantic model in eval mode, with normalisation, padding and autocast around it.

    Args:
        model: itself at fp32; otherwise a copy with cast weights, and batch norms folded into them.
        spec: mean, std and the size that images had in training.
        device: where it runs.
        precision: "fp32", "bf16" or "fp16", of the layers that autocast knows.

    Raises:
        OptionError: no such precision.
    """

    def __init__(
        self, model: nn.Module, spec: PackageSpec, *, device: torch.device, precision: str
    ) -> None:
        if precision not in PRECISIONS:
            raise OptionError(f"precision is {precision!r}: give {', '.join(PRECISIONS)}")
        self.device = device
        self.precision = precision
        self.dtype = PRECISIONS[precision]
        # Measured at half the time or less on CPUs; tensor cores want it as well.
        self.channels_last = device.type == "cpu" or self.dtype is not None
        if self.dtype is not None:
            model = self._lowered(model, spec, self.dtype)
        self.model = model.to(device).eval()
        if self.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        scale = torch.tensor([spec.mean, spec.std], device=device) * 255.0
        self._mean, self._std = scale[:, None, :, None, None]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Scores [N, K, H, W] in float32 of uint8 pixels [N, H, W, C]."""
        x = pixels.to(self.device).permute(0, 3, 1, 2)  # channels last already
        if not self.channels_last:
            x = x.contiguous()
        return self.forward((x.float() - self._mean) / self._std)

    def forward(self, x: Tensor) -> Tensor:
        """Scores in float32 of normalised images [N, C, H, W]; small ones are padded."""
        height, width = x.shape[-2:]
        x = fill_up(x)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            scores: Tensor = self.model(x)["out"]
        return scores[..., :height, :width].float()

    def _lowered(self, model: nn.Module, spec: PackageSpec, dtype: torch.dtype) -> nn.Module:
        """A copy of a model for a lower precision."""
        model = copy.deepcopy(model).eval()
        self._fold(model, spec)
        for module in model.modules():
            if type(module) in _CAST:
                module.to(dtype)
        return model

    def _fold(self, model: nn.Module, spec: PackageSpec) -> None:
        x = torch.randn(1, len(spec.mean), PROBE, PROBE, generator=torch.Generator().manual_seed(0))
        weights = next(model.parameters(), x)
        fold_batch_norms(model, x.to(weights.device))

    def bytes_per_pixel(self) -> float:
        """Memory that a pass takes, by pixel of its input: measured on a small one."""
        x = torch.zeros(1, self._mean.shape[1], PROBE, PROBE, device=self.device)
        try:
            return bytes_per_pixel(self.forward, x)
        except (RuntimeError, SegcoreError):  # a model that does not take this size
            return SURE_BYTES


class Normalised(nn.Module):
    """A semantic model with the normalisation inside, as exported files have it.

    Shape:
        image: uint8 [N, C, H, W], H and W at least 32
        returns: float32 [N, num_classes, H, W], logits
    """

    def __init__(self, model: nn.Module, spec: PackageSpec) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None] * 255.0)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.model((image.float() - self.mean) / self.std)["out"]
        return scores


def fill_up(x: Tensor) -> Tensor:
    """Continue images [N, C, H, W] below and to the right up to the least side of a model."""
    height, width = x.shape[-2:]
    right, bottom = max(0, MIN_SIDE - width), max(0, MIN_SIDE - height)
    if right or bottom:
        x = functional.pad(x, (0, right, 0, bottom), mode="replicate")
    return x
