"""Losses: functions of (logits [N, K, H, W], target [N, H, W]), by name.

A new loss is one file with a function (logits, target, *, ignore_index, class_weights, **options)
and one line in LOSSES. Every loss leaves pixels of ignore_index out, is 0 (with a gradient of 0)
where no pixel is labelled, and computes in float32. With num_classes=1 a loss is binary: one
foreground logit, targets in {0, 1}.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segcore.errors import OptionError, unknown_name
from segcore.losses.border import border_weight_map, border_weighted_cross_entropy
from segcore.losses.bound import Loss, WeightedSum
from segcore.losses.boundary import boundary, signed_distances
from segcore.losses.class_weights import PixelCounts, class_weights_from_counts
from segcore.losses.cross_entropy import cross_entropy
from segcore.losses.dice import dice
from segcore.losses.dice_ce import dice_ce
from segcore.losses.focal import focal
from segcore.losses.jaccard import jaccard
from segcore.losses.lovasz import lovasz_softmax
from segcore.losses.tversky import tversky

__all__ = [
    "LOSSES",
    "Loss",
    "PixelCounts",
    "WeightedSum",
    "border_weight_map",
    "class_weights_from_counts",
    "create_loss",
    "list_losses",
    "signed_distances",
]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "dice_ce": dice_ce,
    "jaccard": jaccard,
    "focal": focal,
    "tversky": tversky,
    "lovasz_softmax": lovasz_softmax,
    "boundary": boundary,
    "border_weighted_cross_entropy": border_weighted_cross_entropy,
}

_COMMON = {"ignore_index", "class_weights"}


def list_losses() -> list[str]:
    """Names that `create_loss` takes, beside "sum" (a weighted sum of these)."""
    return sorted(LOSSES)


def create_loss(
    name: str,
    *,
    num_classes: int,
    ignore_index: int = 255,
    class_weights: Tensor | Sequence[float] | None = None,
    **options: Any,
) -> Loss | WeightedSum:
    """Build a loss by name: loss(logits [N, K, H, W], target int [N, H, W]) -> scalar.

    Args:
        name: a key of LOSSES, or "sum" with terms=[{"name": ..., "weight": 1.0, **options}, ...].
        num_classes: K; 1 means binary, with one foreground logit and targets in {0, 1}.
        ignore_index: id of the pixels that do not count.
        class_weights: [K], or (background, foreground) where K is 1; what they weigh is in the
            loss's own docstring.
        options: the loss function's keyword arguments.

    Raises:
        UnknownNameError: no such loss.
        OptionError: an unknown option, or a value out of range.
    """
    if num_classes < 1:
        raise OptionError(f"num_classes is {num_classes}: give at least 1")
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "ignore_index": ignore_index,
        "class_weights": class_weights,
    }
    if name == "sum":
        return _weighted_sum(common, **options)
    if name not in LOSSES:
        raise unknown_name("loss", name, [*LOSSES, "sum"])
    function = LOSSES[name]
    _check_option_names(name, function, options)
    loss = Loss(name, function, **common, options=options)
    _try(loss)
    return loss


def _weighted_sum(
    common: Mapping[str, Any], *, terms: Sequence[Mapping[str, Any]] = (), **unknown: Any
) -> WeightedSum:
    if unknown:
        raise OptionError(f"loss sum has no option {sorted(unknown)}; known: terms")
    if not terms:
        raise OptionError("loss sum has no terms: give terms=[{'name': 'dice', 'weight': 1}, ...]")
    built = []
    for term in terms:
        options = dict(term)
        weight = options.pop("weight", 1.0)
        name = options.pop("name", None)
        if not isinstance(name, str) or name == "sum":
            raise OptionError(f"term {dict(term)} of loss sum needs a name of {list_losses()}")
        if not isinstance(weight, int | float):
            raise OptionError(f"term {name} of loss sum has weight {weight!r}: give a number")
        loss = create_loss(name, **{**common, **options})
        if isinstance(loss, Loss):
            built.append((float(weight), loss))
    return WeightedSum(built)


def _check_option_names(
    name: str, function: Callable[..., Tensor], options: Mapping[str, Any]
) -> None:
    known = {
        key
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in _COMMON
    }
    unknown = sorted(set(options) - known)
    if unknown:
        raise OptionError(
            f"loss {name} has no option {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known)) or 'none'}"
        )


def _try(loss: Loss) -> None:
    """Run a loss on two unlabelled pixels, so that a wrong option value fails before any work."""
    logits = torch.zeros(1, loss.num_classes, 1, 2)
    target = torch.full((1, 1, 2), loss.ignore_index)
    try:
        loss(logits, target)
    except TypeError as error:
        raise OptionError(f"loss {loss.name} cannot take {loss.options}: {error}") from error
