"""DecoupledNet's two phases: which classes from image-level labels, then where from masks.

Reference: Hong, Noh & Han 2015, arXiv:1506.04924.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.data.streams import LABELLED, WEAK
from segcore.errors import OptionError
from segcore.models.semi_supervised.decouplednet import DecoupledNet
from segcore.tasks.base import Batch, Step
from segcore.tasks.semi_supervised.streams import StreamsTask, plain


class DecoupledTask(StreamsTask):
    """Trains a `DecoupledNet`: the classification net, then, with it fixed, the rest.

    The classes of labelled images are those in their crop, of weakly labelled ones those of the
    whole image. The semantic loss is of validation alone.

    Args:
        classification: share of the run, in 0..1 (both excluded), that trains the classification
            net.
        semantic: arguments of `SemanticTask`.

    Raises:
        OptionError: the share leaves nothing for a phase.
    """

    def __init__(self, *, classification: float = 0.4, **semantic: Any) -> None:
        super().__init__(**semantic)
        if not 0 < classification < 1:
            raise OptionError(
                f"classification is {classification}: both phases need a share, between 0 and 1"
            )
        self.classification = classification

    def steps(self) -> Sequence[Step]:
        """The two phases, one after the other."""
        return (
            Step(
                "classification",
                self.classify,
                lambda model: _net(model).classification_parameters(),
                stop=self.classification,
            ),
            Step(
                "segmentation",
                self.segment,
                lambda model: _net(model).segmentation_parameters(),
                start=self.classification,
            ),
        )

    def training_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Both phases' losses together; the steps take one of them each."""
        return {**self.classify(model, batch), **self.segment(model, batch)}

    def classify(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy of each class in the image, over all images."""
        net = _net(model)
        net.encoder.train()
        labelled, weak = batch[LABELLED], batch[WEAK]
        image = torch.cat([labelled["image"], weak["image"]])
        present = torch.cat([self._present(labelled["target"]).float(), weak["target"]])
        counted = [k for k in range(self.num_classes) if k != net.background]
        scores = net.scores(self.normalise(image)).float()
        loss = F.binary_cross_entropy_with_logits(scores[:, counted], present[:, counted])
        return {"classes": loss}

    def segment(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of each class present against all else, in the labelled images."""
        net = _net(model)
        net.encoder.eval()  # its batch norms, if it has any, are fixed as its weights are
        image, target = batch[LABELLED]["image"], batch[LABELLED]["target"]
        present = self._present(target)
        if net.background is not None:
            present[:, net.background] = False
        rows, classes = present.nonzero(as_tuple=True)
        if len(rows) == 0:  # nothing but background or pixels that count nowhere
            sums = [parameter.sum() for parameter in net.segmentation_parameters()]
            return {"maps": 0.0 * torch.stack(sums).sum()}
        logits = net.maps(self.normalise(image), rows, classes).float()
        inside = (target[rows] == classes[:, None, None]).long()
        inside[target[rows] == self.ignore_index] = self.ignore_index
        return {"maps": F.cross_entropy(logits, inside, ignore_index=self.ignore_index)}

    def _present(self, target: Tensor) -> Tensor:
        """Whether a class is in a mask [N, K]."""
        return torch.stack([(target == k).flatten(1).any(1) for k in range(self.num_classes)], 1)


def _net(model: nn.Module) -> DecoupledNet:
    return cast(DecoupledNet, plain(model))
