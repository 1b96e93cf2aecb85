"""Receptive field and output stride of a network, measured by running it.

The network runs as itself, but every operation is replaced by the plainest one that reads the
same places: a convolution or max-pooling becomes the mean over its window, unpooling a repeat over
it, batch norm and ReLU the identity. All values stay positive, so no dependency cancels and no
maximum hides one; one channel stands for all, so a large network takes a second or two. The
receptive field is then where the gradient of the centre pixel's output is not zero.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
MAX_POOLINGS = (F.max_pool2d, torch.max_pool2d, F.max_pool3d, torch.max_pool3d)
INDEXED_MAX_POOLINGS = (F.max_pool2d_with_indices, F.max_pool3d_with_indices)
UNPOOLINGS = (F.max_unpool2d, F.max_unpool3d)
AVERAGE_POOLINGS = (F.avg_pool2d, F.avg_pool3d)
IDENTITIES = (
    F.batch_norm, F.layer_norm, F.relu, F.relu_, torch.relu, torch.relu_, F.leaky_relu, F.prelu,
    F.relu6, F.elu, F.silu, F.gelu, F.hardswish,
)  # fmt: skip
GLOBAL_NORMS = (F.group_norm, F.instance_norm)
IN_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.Tensor.add_: torch.add, torch.Tensor.__iadd__: torch.add,
    torch.Tensor.mul_: torch.mul, torch.Tensor.__imul__: torch.mul,
}  # fmt: skip
CONV_ARGUMENTS = ("stride", "padding", "dilation")
TRANSPOSED_ARGUMENTS = ("stride", "padding", "output_padding", "groups", "dilation")


class _Footprint(TorchFunctionMode):
    """Replaces operations as the module says; keeps the smallest side after a strided one."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.smallest: int | None = None
        # Sizes (before, after) of each pooling, by the memory that its indices lie in.
        self.poolings: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.kept: list[Tensor] = []  # so that no other tensor takes their memory

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS:
            x, weight = args[:2]
            given = dict(zip(CONV_ARGUMENTS, args[3:6], strict=False)) | kwargs
            given = {key: given[key] for key in CONV_ARGUMENTS if key in given}
            return self._strided(x, _spread(func, x, weight.shape[2:], weight.shape[0], given))
        if func in TRANSPOSED:
            x, weight = args[:2]
            given = dict(zip(TRANSPOSED_ARGUMENTS, args[3:], strict=False)) | kwargs
            channels = weight.shape[1] * given.pop("groups", 1)
            given.pop("bias", None)
            return _spread(func, x, weight.shape[2:], channels, given)
        if func in MAX_POOLINGS or func in INDEXED_MAX_POOLINGS:
            return self._pool(func, args, kwargs)
        if func in UNPOOLINGS:
            return self._unpool(*args[:2])
        if func is torch.Tensor.scatter and self._is_pooling(args[2]):
            return self._unpool(args[3], args[2])
        if func in IDENTITIES:
            return args[0]
        if func in GLOBAL_NORMS:
            return args[0] + args[0].mean(dim=tuple(range(2, args[0].dim())), keepdim=True)
        out = IN_PLACE.get(func, func)(*args, **kwargs)
        return self._strided(args[0], out) if func in AVERAGE_POOLINGS else out

    def _strided(self, x: Tensor, out: Tensor) -> Tensor:
        before, after = x.shape[self.axis], out.shape[self.axis]
        # Less than half by a stride, not by a kernel without padding.
        if after <= before * 0.6:
            self.smallest = min(after, self.smallest or after)
        return out

    def _pool(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | tuple[Tensor, Tensor]:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        x = args[0]
        given = dict(zip(names, args[1:], strict=False)) | kwargs
        given.pop("return_indices", None)
        with torch.no_grad():
            pool: Callable[..., Any] = F.max_pool2d if x.dim() == 4 else F.max_pool3d
            values, places = pool(x.detach(), **given, return_indices=True)
        kernel = _each(given["kernel_size"], x)
        stride = _each(given.get("stride") or kernel, x)
        margin = _each(given.get("padding", 0), x)
        sides = [side for k, s, p in zip(kernel, stride, margin, strict=True)
                 for side in (p + k + s, p)]  # fmt: skip
        padded = F.pad(x, sides[::-1])
        conv = F.conv2d if x.dim() == 4 else F.conv3d
        window = {"stride": stride, "dilation": given.get("dilation", 1)}
        out = _spread(conv, padded, kernel, x.shape[1], window)
        for axis, side in enumerate(values.shape[2:], start=2):
            out = out.narrow(axis, 0, side)
        self._strided(x, out)
        sizes = (tuple(x.shape[2:]), tuple(values.shape[2:]))
        self.poolings[places.untyped_storage().data_ptr()] = sizes
        self.kept.append(places)
        return (out, places) if func in INDEXED_MAX_POOLINGS else out

    def _is_pooling(self, places: Tensor) -> bool:
        return places.untyped_storage().data_ptr() in self.poolings

    def _unpool(self, values: Tensor, places: Tensor) -> Tensor:
        """Repeat each value over its window; of maps or of flattened maps, as they are given."""
        before, after = self.poolings[places.untyped_storage().data_ptr()]
        maps = values.reshape(*values.shape[:2], *after)
        repeated = F.interpolate(maps, size=before, mode="nearest")
        return repeated if values.dim() > 3 else repeated.flatten(2)


def _each(value: int | Sequence[int], x: Tensor) -> tuple[int, ...]:
    return (value,) * (x.dim() - 2) if isinstance(value, int) else tuple(value)


def _spread(
    conv: Callable[..., Tensor],
    x: Tensor,
    kernel: Sequence[int],
    channels: int,
    arguments: dict[str, Any],
) -> Tensor:
    """Mean over the channels and the window, the same in every output channel."""
    mean = x.mean(dim=1, keepdim=True)
    weight = torch.ones((1, 1, *kernel), dtype=x.dtype)
    weight = weight / weight.numel()
    out = conv(mean, weight, **arguments)
    return out.expand(-1, channels, *out.shape[2:])


def measure_footprint(
    model: nn.Module, size: Sequence[int], *, in_channels: int = 3, axis: int = 0
) -> tuple[int, int, int]:
    """Where the centre pixel's output looks along one axis, and the smallest map on the way.

    Args:
        model: its own parameters and mode are left alone; it runs as in eval mode.
        size: (H, W) or (D, H, W) of the input.
        in_channels: channels of the input.
        axis: 0 for the first of `size`.

    Returns:
        first and last position of the input that the output reads (inclusive), and the smallest
        side of a map after a strided convolution or pooling (the input's where there is none).
    """
    state = {
        key: torch.ones((), dtype=torch.float64).expand(value.shape)
        for key, value in (*model.named_parameters(), *model.named_buffers())
    }
    x = torch.rand(1, in_channels, *size, dtype=torch.float64) + 1
    x.requires_grad_()
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with _Footprint(axis + 2) as mode:
            out = functional_call(model, state, (x,))
    finally:
        for module in was_training:
            module.training = True
    if isinstance(out, dict):
        out = out["out"]
    elif isinstance(out, (list, tuple)):
        out = out[-1]
    out.narrow(axis + 2, out.shape[axis + 2] // 2, 1).sum().backward()
    others = [d for d in range(x.dim()) if d != axis + 2]
    touched = x.grad.abs().sum(others).nonzero()  # type: ignore[union-attr]
    return int(touched.min()), int(touched.max()), mode.smallest or size[axis]
