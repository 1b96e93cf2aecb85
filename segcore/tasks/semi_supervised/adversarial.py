"""A segmenter against a generator: real pixels are of some class, generated ones of none.

Reference: Souly, Spampinato & Shah 2017, arXiv:1703.09695; the terms are those of Salimans et al.
2016, arXiv:1606.03498, for every pixel.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segcore.data.streams import LABELLED, UNLABELLED, WEAK
from segcore.errors import OptionError
from segcore.models.semi_supervised.gan import SegmentingGAN
from segcore.tasks.base import Batch, Step
from segcore.tasks.semi_supervised.streams import StreamsTask, plain


class AdversarialTask(StreamsTask):
    """Two optimisers in turn on each batch: the segmenter's, then the generator's.

    The segmenter learns the masks over the real classes and the fake one together, that images
    without masks are not fake (with known classes: that each pixel is of one of these), and that
    generated images are. The generator learns not to be found out: it minimises -log(1 - p(fake)),
    which unlike log p(fake) is bounded below.

    Args:
        real: weight of the term of images without masks, >= 0.
        fake: weight of the term of generated images, >= 0.
        generator_lr: the generator's learning rate over the segmenter's.
        semantic: arguments of `SemanticTask`; its loss takes the place of the cross-entropy, but
            sees the real classes alone.

    Raises:
        OptionError: an option is out of range.
    """

    rest = UNLABELLED
    """The stream of images without masks."""

    def __init__(
        self, *, real: float = 1.0, fake: float = 1.0, generator_lr: float = 1.0, **semantic: Any
    ) -> None:
        super().__init__(**semantic)
        for name, value in (("real", real), ("fake", fake), ("generator_lr", generator_lr)):
            if not 0 <= value < math.inf or (name == "generator_lr" and value == 0):
                raise OptionError(f"{name} of the GAN is {value}: give a positive number")
        self.real = real
        self.fake = fake
        self.generator_lr = generator_lr

    def steps(self) -> Sequence[Step]:
        """Segmenter, then generator."""
        return (
            Step("segmenter", self.discriminate, lambda m: _net(m).segmenter.parameters()),
            Step(
                "generator",
                self.deceive,
                lambda m: _net(m).generator.parameters(),
                lr_factor=self.generator_lr,
            ),
        )

    def training_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Both players' losses together; the steps take one of them each."""
        return {**self.discriminate(model, batch), **self.deceive(model, batch)}

    def discriminate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The segmenter's loss on labelled, other and generated images."""
        net = _net(model)
        labelled, rest = batch[LABELLED], batch[self.rest]
        outputs = net.judge(self.normalise(torch.cat([labelled["image"], rest["image"]])))
        count = len(labelled["image"])
        own = {name: logits[:count, : self.num_classes] for name, logits in outputs.items()}
        with torch.no_grad():
            generated = self._generate(net, batch)
        with _statistics_kept(net.segmenter):
            judged = net.judge(self.normalise(generated))["out"]
        return {
            **self.terms(net.segmenter, own, labelled["target"]),
            "not_fake": self._labelled_are_real(outputs["out"][:count], labelled["target"]),
            "real": self.real * self._are_real(outputs["out"][count:], rest),
            "fake": self.fake * -_log_fake(judged).mean(),
        }

    def deceive(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The generator's loss."""
        net = _net(model)
        with _statistics_kept(net.segmenter):
            judged = net.judge(self.normalise(self._generate(net, batch)))["out"]
        return {"deceit": -_log_real(judged).mean()}

    def _are_real(self, logits: Tensor, rest: Batch) -> Tensor:
        """Minus the mean log-probability of any real class."""
        return -_log_real(logits).mean()

    def _labelled_are_real(self, logits: Tensor, target: Tensor) -> Tensor:
        """Likewise where pixels have a label: with the loss over real classes, the joint one.

        Cross-entropy over K + 1 classes is that over the K real ones, plus this.
        """
        counted = (target != self.ignore_index).float()
        return -(_log_real(logits) * counted).sum() / counted.sum().clamp(min=1.0)

    def _generate(self, net: SegmentingGAN, batch: Batch) -> Tensor:
        rest = batch[self.rest]
        size = (int(rest["image"].shape[-2]), int(rest["image"].shape[-1]))
        return net.generate(len(rest["image"]), size, rest["target"])


class WeakAdversarialTask(AdversarialTask):
    """Likewise where the classes of images without masks are known.

    A pixel of such an image is of one of its classes, and the generator is told the classes of
    the real images beside it.
    """

    rest = WEAK

    def _are_real(self, logits: Tensor, rest: Batch) -> Tensor:
        """Minus the mean log-probability of the image's classes; of all, if none is known."""
        logits = logits.float()
        allowed = rest["target"] > 0
        allowed = allowed | ~allowed.any(1, keepdim=True)
        kept = logits[:, : self.num_classes].masked_fill(~allowed[:, :, None, None], -math.inf)
        return (logits.logsumexp(1) - kept.logsumexp(1)).mean()


def _log_fake(logits: Tensor) -> Tensor:
    """log p(fake) of each pixel."""
    return F.log_softmax(logits.float(), 1)[:, -1]


def _log_real(logits: Tensor) -> Tensor:
    """log(1 - p(fake)) of each pixel."""
    logits = logits.float()
    return logits[:, :-1].logsumexp(1) - logits.logsumexp(1)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let batch norms use the batch at hand and keep it out of their running statistics.

    Those are of inference, which sees no generated images.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _net(model: nn.Module) -> SegmentingGAN:
    return cast(SegmentingGAN, plain(model))
