"""What tasks with several streams in a batch share."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segcore.data.streams import LABELLED
from segcore.tasks.base import Batch
from segcore.tasks.semantic import SemanticTask


class StreamsTask(SemanticTask):
    """Semantic segmentation in validation; in training a batch nests those of several streams.

    `{"labelled": {"image", "target"}, "unlabelled": {...}, ...}`, see `segcore.data.streams`.
    """

    resizes = False

    def check(self, batch: Batch) -> None:
        """Refuse ids in masks that are no class."""
        super().check(batch.get(LABELLED, batch))


def plain(model: nn.Module) -> nn.Module:
    """The model itself, out of torch.compile's and data-parallel wrappers."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, DistributedDataParallel):
        found: nn.Module = model.module
        return found
    return model
