"""How much memory a pass of a network needs, measured on a small one."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PROBE = 128  # pixels a side of the pass that is measured
SCRATCH = 2.0  # convolutions copy their input and output into layouts of their own
SURE_BYTES = 2**15  # bytes a pixel that no network here needs: below, nothing is measured


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that operations made and that are still alive; keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, int] = {}
        self.total = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.live or storage.nbytes() == 0:
            return
        self.live[key] = storage.nbytes()
        self.total += storage.nbytes()
        self.peak = max(self.peak, self.total)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.total -= self.live.pop(key, 0)


def bytes_per_pixel(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Most memory that lives at a time during `run(x)`, by pixel of x [1, C, H, W].

    Counts the tensors that operations return, whoever calls them, and doubles them for the copies
    that the kernels make inside.
    """
    with _Peak() as mode, torch.inference_mode():
        result = run(x)
    del result
    return float(SCRATCH * (mode.peak + x.nbytes) / (x.shape[-2] * x.shape[-1]))
