"""Batch norms taken into the convolutions before them: one pass the fewer over each feature map."""

from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from segcore.errors import SegcoreError

TOLERANCE = 1e-3  # of the largest score; rounding makes 1e-6, another function far more

Convolution = nn.Conv2d | nn.ConvTranspose2d
Pair = tuple[Convolution, nn.BatchNorm2d]


@torch.no_grad()
def fold_batch_norms(model: nn.Module, x: Tensor) -> int:
    """Fold, in place, each batch norm that follows a convolution; the scores stay the same.

    Which do is seen in a pass over `x`, whatever the code of the model looks like. A convolution
    whose output something else reads as well gives other scores then: a second pass compares them,
    and where they differ, all is as it was.

    Args:
        model: semantic, in eval mode, in float32.
        x: images that it takes, float32 [N, C, H, W].

    Returns:
        How many were folded; 0 too where the model does not take `x`.
    """
    try:
        pairs, scores = _observe(model, x)
    except (RuntimeError, SegcoreError):
        return 0
    before = [(conv, conv.weight, conv.bias) for conv, _ in pairs]
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if any(child is norm for _, norm in pairs)
    ]
    for conv, norm in pairs:
        _fold(conv, norm)
    for parent, name, _ in places:
        setattr(parent, name, nn.Identity())
    if _alike(model(x)["out"], scores):
        return len(pairs)
    for conv, weight, bias in before:
        conv.weight, conv.bias = weight, bias
    for parent, name, child in places:
        setattr(parent, name, child)
    return 0


def _observe(model: nn.Module, x: Tensor) -> tuple[list[Pair], Tensor]:
    """Batch norms with the convolution that made their input, each run once; and the scores."""
    made: list[tuple[Tensor, Convolution]] = []  # kept, so that no address is used again
    found: list[Pair] = []
    runs: Counter[nn.Module] = Counter()

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        runs[module] += 1
        if isinstance(module, Convolution):
            made.append((output, module))

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.BatchNorm2d):
            found.extend((conv, module) for output, conv in made if output is inputs[0])

    hooks = []
    for module in model.modules():
        if type(module) is nn.BatchNorm2d and module.running_mean is not None:
            hooks += [module.register_forward_pre_hook(before)]
            hooks += [module.register_forward_hook(after)]
        elif type(module) is nn.Conv2d or (
            type(module) is nn.ConvTranspose2d and module.groups == 1
        ):
            hooks.append(module.register_forward_hook(after))
    try:
        scores = model(x)["out"]
    finally:
        for hook in hooks:
            hook.remove()
    once = [pair for pair in found if runs[pair[0]] == runs[pair[1]] == 1]
    readers = Counter(conv for conv, _ in once)
    return [pair for pair in once if readers[pair[0]] == 1], scores


def _fold(conv: Convolution, norm: nn.BatchNorm2d) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        cast(Tensor, norm.running_mean),
        cast(Tensor, norm.running_var),
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(conv, nn.ConvTranspose2d),
    )


def _alike(scores: Tensor, expected: Tensor) -> bool:
    most = float(expected.abs().max())
    return bool(((scores - expected).abs() <= TOLERANCE * most).all())
