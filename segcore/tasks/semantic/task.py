"""The loss and the figures of one class per pixel, for the training loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segcore.errors import DataError, OptionError, ShapeError
from segcore.inference import tiling
from segcore.losses import class_weights_from_counts, create_loss
from segcore.metrics import ConfusionMatrix
from segcore.tasks.base import Batch, Task
from segcore.tasks.semantic.metric import SemanticLoss, SemanticMetric
from segcore.tasks.semantic.smaller import halve_images, halve_targets

AUX_WEIGHT = 0.4
WHOLE_SCORES = 2**28  # pixels x classes (32 or more) of an image: 8 megapixels of 32 classes
VALIDATION_TILE = 1024


class SemanticTask(Task):
    """A loss over logits, and counts of a confusion matrix.

    A batch has "image" (uint8 0..255, or float 0..1; [N, C, H, W]) and "target" (int64
    [N, H, W]). The model returns {"out": logits [N, K, H, W], "aux...": likewise} or logits alone.

    Args:
        num_classes: K; 1 means binary, with one foreground logit and target ids 0 and 1.
        loss: (logits, target) -> scalar.
        ignore_index: target id that counts nowhere.
        mean: per channel, of images in 0..1.
        std: likewise, > 0.
        class_names: K names, for the keys of figures; None: class_0, class_1, ...
        aux_weight: weight of the loss of each auxiliary output; None takes the model's own
            `aux_weight` (G-FRNet: 1), or 0.4 as PSPNet and torchvision do.
        loss_name: key of the main loss term.

    Raises:
        OptionError: the numbers of names or channels do not agree.
    """

    resizes = True

    def __init__(
        self,
        *,
        num_classes: int,
        loss: SemanticLoss,
        ignore_index: int,
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Sequence[str] | None = None,
        aux_weight: float | None = None,
        loss_name: str = "main",
    ) -> None:
        names = class_names if class_names else [f"class_{i}" for i in range(num_classes)]
        if len(names) != num_classes:
            raise OptionError(f"class_names has {len(names)} names for {num_classes} classes")
        if len(mean) != len(std) or min(std, default=0.0) <= 0:
            raise OptionError(
                f"mean is {tuple(mean)} and std {tuple(std)}: give one of each per channel, std > 0"
            )
        self.num_classes = num_classes
        self.loss = loss
        self.ignore_index = ignore_index
        self.class_names = tuple(names)
        self.aux_weight = aux_weight
        self.loss_name = loss_name
        self._mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)

    def normalise(self, image: Tensor) -> Tensor:
        """(x - mean) / std of images in 0..1; uint8 is scaled by 1/255 first.

        Shape:
            image: [N, C, H, W] uint8 or float
            returns: [N, C, H, W] float32

        Raises:
            ShapeError: another number of channels.
        """
        if image.ndim != 4 or image.shape[1] != self._mean.shape[1]:
            raise ShapeError(
                f"image is {tuple(image.shape)}, expected [N, {self._mean.shape[1]}, H, W]: "
                "mean and std say the number of channels"
            )
        if self._mean.device != image.device:
            self._mean, self._std = self._mean.to(image.device), self._std.to(image.device)
        scaled = image.float() if image.is_floating_point() else image.float() / 255.0
        return (scaled - self._mean) / self._std

    def check(self, batch: Batch) -> None:
        """Refuse target ids that are no class: an accelerator would end the process on them.

        Looks at every batch, in host memory: two passes for an extremum of int64, about 1 ms for
        eight images of 512 x 512.

        Raises:
            DataError: naming the ids and the samples.
        """
        target = batch["target"]
        highest = max(self.num_classes, 2) - 1
        if target.numel() == 0 or _within(target, highest):
            return
        wrong = ((target < 0) | (target > highest)) & (target != self.ignore_index)
        if not bool(wrong.any()):
            return
        rows = wrong.flatten(1).any(1).nonzero().flatten().tolist()
        names = [str(batch["id"][row]) for row in rows] if "id" in batch else rows
        raise DataError(
            f"target of {', '.join(map(str, names[:5]))} has class id "
            f"{', '.join(map(str, target[wrong].unique().tolist()[:10]))}, but there are "
            f"{self.num_classes} classes (0..{highest}) and ignore_index is {self.ignore_index}: "
            "correct the masks, num_classes or ignore_index"
        )

    def smaller(self, batch: Batch) -> Batch:
        """Images by the mean of four pixels, targets by one of them."""
        image, target = halve_images(batch["image"]), halve_targets(batch["target"])
        return {**batch, "image": image, "target": target}

    def training_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The loss of "out", and of each auxiliary output by its weight."""
        outputs = model(self.normalise(batch["image"]))
        if isinstance(outputs, Tensor):
            outputs = {"out": outputs}
        return self.terms(model, outputs, batch["target"])

    def terms(
        self, model: nn.Module, outputs: Mapping[str, Tensor], target: Tensor
    ) -> dict[str, Tensor]:
        """The loss terms of a model's outputs, by name; arguments as `training_step`."""
        terms = {self.loss_name: self.loss(outputs["out"], target)}
        weight = self.aux_weight
        if weight is None:
            weight = getattr(getattr(model, "module", model), "aux_weight", AUX_WEIGHT)
        for name, logits in outputs.items():
            if name.startswith("aux"):
                terms[name] = weight * self.loss(logits, target)
        return terms

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [N, K, H, W]; of very large images put together from overlapping tiles."""
        image = batch["image"]
        if image.shape[-2] * image.shape[-1] * max(self.num_classes, 32) > WHOLE_SCORES:
            return self._predict_tiles(model, image)
        return _main_output(model(self.normalise(image)))

    def _predict_tiles(self, model: nn.Module, image: Tensor) -> Tensor:
        """As `predict`, never holding more than the pass of a tile beside the logits."""

        def run(top: int, bottom: int, left: int, right: int) -> Tensor:
            part = self.normalise(image[..., top:bottom, left:right])
            return _main_output(model(part)).float()

        size = (int(image.shape[-2]), int(image.shape[-1]))
        shape = (len(image), self.num_classes, *size)
        logits = torch.empty(shape, device=image.device)
        for top, scores in tiling.blend(run, size, tile=VALIDATION_TILE):
            logits[..., top : top + scores.shape[-2], :] = scores
        return logits

    def new_metric(self) -> "SemanticMetric":
        """Confusion matrix and mean loss."""
        names = self.class_names
        return SemanticMetric(
            ConfusionMatrix(self.num_classes, self.ignore_index),
            loss=self.loss,
            class_names=names if len(names) > 1 else ("background", *names),
        )


def create_semantic_task(dataset: Any = None, **options: Any) -> SemanticTask:
    """A `SemanticTask`; see `semantic_arguments`."""
    return SemanticTask(**semantic_arguments(dataset, **options))


def semantic_arguments(
    dataset: Any = None,
    *,
    loss: str = "cross_entropy",
    class_weights: str = "none",
    options: Mapping[str, Any] | None = None,
    aux_weight: float | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Arguments of `SemanticTask` from the name of a loss and the facts of a dataset.

    Args:
        dataset: has `num_classes`, `ignore_index`, `mean`, `std`, `classes` and `pixel_counts`.
        loss: a name of `list_losses`.
        class_weights: none, median_frequency, inverse_log or sqrt_inverse_log, from
            `pixel_counts`.
        options: of the loss.
        aux_weight: weight of auxiliary outputs; None: the model's own, else 0.4.
        facts: any of the dataset's attributes above, in its place.

    Raises:
        OptionError: a fact is missing, or an option is unknown.
        UnknownNameError: no such loss.
    """
    unknown = sorted(set(facts) - set(OPTIONS))
    if unknown:
        raise OptionError(
            f"task semantic has no option {', '.join(unknown)}; known: {', '.join(OPTIONS)}"
        )
    num_classes, mean, std = (_fact(name, dataset, facts) for name in _REQUIRED)
    ignore_index, classes, counts = (_fact(name, dataset, facts) for name in _DEFAULTS)
    if class_weights != "none" and counts is None:
        raise OptionError(f"class_weights is {class_weights!r}: give pixel_counts, or a dataset")
    weights = class_weights_from_counts(class_weights, counts or _NO_COUNTS)
    function = create_loss(
        loss,
        num_classes=num_classes,
        ignore_index=ignore_index,
        class_weights=weights,
        **(options or {}),
    )
    return {
        "num_classes": num_classes,
        "loss": function,
        "ignore_index": ignore_index,
        "mean": mean,
        "std": std,
        "class_names": classes,
        "aux_weight": aux_weight,
        "loss_name": loss,
    }


_REQUIRED = ("num_classes", "mean", "std")
_DEFAULTS: dict[str, Any] = {"ignore_index": 255, "classes": None, "pixel_counts": None}
OPTIONS = ("loss", "class_weights", "options", "aux_weight", *_REQUIRED, *_DEFAULTS)
_NO_COUNTS: Any = {"pixels": [], "image_pixels": [], "total": 0}


def _fact(name: str, dataset: Any, facts: Mapping[str, Any]) -> Any:
    if name in facts:
        return facts[name]
    if dataset is not None:
        return getattr(dataset, name)
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    raise OptionError(f"task semantic lacks {name}: give a dataset, or {name}=...")


def _main_output(outputs: Any) -> Tensor:
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs["out"]
    return logits


def _within(target: Tensor, highest: int) -> bool:
    least, most = torch.aminmax(target)
    return int(least) >= 0 and int(most) <= highest
