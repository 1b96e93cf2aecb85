"""The forward pass of inference: uint8 pixels to scores, on a device, at a precision."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from segcore.errors import OptionError
from segcore.inference.spec import PackageSpec

PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MIN_SIDE = 32

# Autocast would cast the weights of these anew in every pass: its cache is for training alone.
_CAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Network:
    """A semantic model in eval mode, with normalisation, padding and autocast around it.

    Args:
        model: itself at fp32; a copy with cast weights otherwise.
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
        self.model = (model if self.dtype is None else _cast(model, self.dtype)).to(device).eval()
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
        right, bottom = max(0, MIN_SIDE - width), max(0, MIN_SIDE - height)
        if right or bottom:
            x = functional.pad(x, (0, right, 0, bottom), mode="replicate")
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            scores: Tensor = self.model(x)["out"]
        return scores[..., :height, :width].float()


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in _CAST:
            module.to(dtype)
    return model
