"""Mean teacher: what an average of the model is sure of is the label of a harsher view.

The plain baseline of learning from images without masks, for any semantic architecture. With
`decay` 0 the teacher is the model itself, and these are the pseudo-labels of FixMatch.

Reference: Tarvainen & Valpola 2017, arXiv:1703.01780 (the averaged teacher); Liu et al. 2021,
arXiv:2102.09480 (burn-in on the labelled images); Sohn et al. 2020, arXiv:2001.07685 (confidence
threshold, strong and weak views); French et al. 2020, arXiv:1906.01916 (CutMix, without which
consistency hardly helps segmentation).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.data.streams import LABELLED, UNLABELLED
from segcore.errors import OptionError
from segcore.tasks.base import Batch
from segcore.tasks.ema import WeightAverage
from segcore.tasks.semantic.smaller import halve_images
from segcore.tasks.semi_supervised.streams import StreamsTask, plain

CUT_AREA = 0.5


class MeanTeacherTask(StreamsTask):
    """The loss of the labelled images, and cross-entropy to the teacher's confident labels.

    The first share of the run learns from labelled images alone: a step costs half, and a teacher
    that knows little only confirms its errors. Then the teacher labels the weak view, and the
    student learns the strong one, part of which is exchanged with the next image's, labels and all.
    Pixels of which the teacher is not sure count as 0. The teacher is what is validated and kept.
    Such a task is for one run.

    Args:
        threshold: least probability of a label that counts, in 0..1.
        weight: of the term, >= 0.
        decay: of the teacher's average, in 0..1 (1 excluded); 0: the teacher is the student.
        cutmix: probability that a strong view gets a rectangle of the next image's.
        burn_in: share of the run that sees labelled images alone, in 0..1.
        semantic: arguments of `SemanticTask`.

    Raises:
        OptionError: an option is out of range.
    """

    resizes = True

    def __init__(
        self,
        *,
        threshold: float = 0.9,
        weight: float = 1.0,
        decay: float = 0.99,
        cutmix: float = 0.5,
        burn_in: float = 0.5,
        **semantic: Any,
    ) -> None:
        super().__init__(**semantic)
        for name, value, fits, allowed in (
            ("threshold", threshold, 0 <= threshold <= 1, "in 0..1"),
            ("weight", weight, 0 <= weight < math.inf, "at least 0"),
            ("decay", decay, 0 <= decay < 1, "in 0..1, below 1"),
            ("cutmix", cutmix, 0 <= cutmix <= 1, "in 0..1"),
            ("burn_in", burn_in, 0 <= burn_in <= 1, "in 0..1"),
        ):
            if not fits:
                raise OptionError(f"{name} of the mean teacher is {value}; it must be {allowed}")
        self.threshold = threshold
        self.weight = weight
        self.decay = decay
        self.cutmix = cutmix
        self.burn_in = burn_in
        self.progress = 0.0
        self.updates = 0
        self._teacher: WeightAverage | None = None
        self._stored: Mapping[str, Tensor] | None = None

    def training_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """One pass over labelled images and strong views together, as data-parallel training asks.

        Shape:
            batch["labelled"]: "image" [N, C, H, W], "target" [N, H, W]
            batch["unlabelled"]: "image" and "strong" [M, C, H, W]
        """
        labelled, rest = batch[LABELLED], batch[UNLABELLED]
        if self.progress < self.burn_in:
            return super().training_step(model, labelled)
        pseudo, sure = self._label(model, rest["image"])
        strong, pseudo, sure = self._cut_and_mix(rest["strong"], pseudo, sure)
        outputs = model(self.normalise(torch.cat([labelled["image"], strong])))
        if isinstance(outputs, Tensor):
            outputs = {"out": outputs}
        count = len(labelled["image"])
        own = {name: logits[:count] for name, logits in outputs.items()}
        logits = two_sided(outputs["out"][count:]).float()
        errors = F.cross_entropy(logits, pseudo, reduction="none")
        return {
            **self.terms(model, own, labelled["target"]),
            "consistency": self.weight * (errors * sure).mean(),
        }

    def smaller(self, batch: Batch) -> Batch:
        """Both streams, the strong views as well."""
        rest = batch[UNLABELLED]
        halved = {name: halve_images(rest[name]) for name in ("image", "strong")}
        return {**batch, LABELLED: super().smaller(batch[LABELLED]), UNLABELLED: {**rest, **halved}}

    @torch.no_grad()
    def _label(self, model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classes [M, H, W] that the teacher sees, and 1 where it is sure of them, else 0."""
        outputs = self._average(model).model(self.normalise(image))
        logits = outputs if isinstance(outputs, Tensor) else outputs["out"]
        probability, pseudo = two_sided(logits).float().softmax(1).max(1)
        return pseudo, (probability >= self.threshold).float()

    def _cut_and_mix(
        self, image: Tensor, pseudo: Tensor, sure: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Replace a rectangle of half the area, in a share of the images, by the next one's."""
        height, width = image.shape[-2:]
        inside = torch.zeros(len(image), height, width, dtype=torch.bool)
        for row in inside if len(image) > 1 else ():
            odds, shape, y, x = torch.rand(4).tolist()
            if odds < self.cutmix:
                side = CUT_AREA ** (0.2 + 0.6 * shape)  # of the height; the rest is the width's
                tall, wide = round(height * side), round(width * CUT_AREA / side)
                top, left = round(y * (height - tall)), round(x * (width - wide))
                row[top : top + tall, left : left + wide] = True
        inside = inside.to(image.device)
        return (
            torch.where(inside[:, None], image.roll(-1, 0), image),
            torch.where(inside, pseudo.roll(-1, 0), pseudo),
            torch.where(inside, sure.roll(-1, 0), sure),
        )

    def before_step(self, progress: float) -> None:
        """Remember where in the run it is."""
        self.progress = progress

    def after_step(self, model: nn.Module) -> None:
        """The teacher follows."""
        self._average(model).update(model, self.updates)
        self.updates += 1

    def judged(self, model: nn.Module) -> nn.Module:
        """The teacher."""
        return self._average(model).model

    def _average(self, model: nn.Module) -> WeightAverage:
        if self._teacher is None:
            self._teacher = WeightAverage(plain(model), decay=self.decay)
            if self._stored is not None:
                self._teacher.model.load_state_dict(dict(self._stored))
        return self._teacher

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights, and how often it has moved."""
        weights = self._stored if self._teacher is None else self._teacher.model.state_dict()
        return {"updates": self.updates, "teacher": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.updates, self._stored, self._teacher = state["updates"], state["teacher"], None


def two_sided(logits: Tensor) -> Tensor:
    """Logits of two classes or more; a single one, of the foreground, is that of the second."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
