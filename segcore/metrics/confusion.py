"""The confusion matrix, streamed: exact counts, no host synchronisation on an accelerator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segcore.errors import DataError, OptionError, ShapeError
from segcore.metrics.scores import Scores, scores

_BYTE = 256  # target ids 0..255 each have a row, so that uint8 masks need no clamp
_CHUNK = 1 << 17  # pixels counted at a time on the CPU, so that they stay in its cache
_REPLICAS = 64  # copies of the table on an accelerator, so that its atomic adds seldom collide


class ConfusionMatrix:
    """Pixels by true and predicted class over everything that was added.

    Pixels whose target is ignore_index count nowhere, whatever was predicted there. Counts are
    int64 and exact; figures are taken from the sum over the data set, not averaged over images.

    The table that is counted has a row for every usual target id, one for all ids below, one for
    all above and one for ignored pixels that had to be moved; columns likewise. So an update is one
    addition and one count. Wrong ids are found in their rows: at once on the CPU, on an accelerator
    when figures are asked for.

    Args:
        num_classes: K. With 1 the matrix is 2 x 2, background and foreground, and predictions are
            {0, 1} or one foreground logit.
        ignore_index: target id that does not count. Within 0..K-1 it is a class that is not scored.
        device: where the counts live; that of the first update by default.

    Reference: Long, Shelhamer & Darrell 2015, arXiv:1411.4038, section 5.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        device: torch.device | str | None = None,
    ) -> None:
        if num_classes < 1:
            raise OptionError(f"num_classes is {num_classes}: give at least 1")
        self.num_classes = max(num_classes, 2)
        self.ignore_index = ignore_index
        self._low = ignore_index if -_BYTE <= ignore_index < 0 else 0
        self._high = max(self.num_classes, _BYTE)
        self._rows = self._high - self._low
        shape = (self._rows + 3, self.num_classes + 2)
        self._table = torch.zeros(shape, dtype=torch.int64, device=device)
        self._placed = device is not None

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Shape:
            prediction: [N, H, W] integer class ids, or [N, K, H, W] logits (argmax is taken; one
                channel is a foreground logit)
            target: [N, H, W] integer class ids or ignore_index

        Raises:
            ShapeError: the shapes do not belong together.
            DataError: an id is neither a class nor ignore_index (on the CPU; see `matrix`).
        """
        if prediction.dim() == target.dim() + 1:
            single = prediction.shape[1] == 1
            prediction = prediction[:, 0] > 0 if single else prediction.argmax(1)
        if prediction.shape != target.shape:
            raise ShapeError(
                f"prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}: "
                "give class ids of the target's shape, or logits [N, K, H, W]"
            )
        if prediction.is_floating_point() or target.is_floating_point():
            raise ShapeError(
                f"prediction is {prediction.dtype} and target {target.dtype}: give class ids as "
                "integers, or logits [N, K, H, W] with a target [N, H, W]"
            )
        if not self._placed:
            self._table, self._placed = self._table.to(target.device), True
        prediction, target = prediction.to(self._table.device), target.to(self._table.device)
        if target.numel() == 0:
            return
        counts = self._count(prediction, target)
        if counts.device.type == "cpu":
            self._check(counts)
        self._table += counts

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The table of one batch."""
        prediction, target = prediction.flatten(), target.flatten()
        if target.device.type != "cpu":
            return self._count_replicated(self._bins(prediction.long(), target.long()))
        table = torch.zeros_like(self._table)
        for start in range(0, target.numel(), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._add_chunk(table, prediction[chunk].long(), target[chunk].long())
        return table

    def _add_chunk(self, table: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Count some pixels on the CPU; only ids without a row cost a clamp."""
        if _within(target, self._low, self._high) and _within(prediction, 0, self.num_classes):
            bins = torch.add(prediction, target, alpha=self.num_classes)
            if self._low:
                bins.sub_(self._low * self.num_classes)
            counts = torch.bincount(bins, minlength=self._rows * self.num_classes)
            table[1:-2, 1:-1] += counts.view(self._rows, self.num_classes)
        else:
            bins = self._bins(prediction, target)
            table += torch.bincount(bins, minlength=table.numel()).view_as(table)

    def _bins(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Place of each pixel in the flat table, for ids of any value."""
        row = target.clamp(self._low - 1, self._high)
        row = torch.where(target == self.ignore_index, self._high + 1, row)
        column = prediction.clamp(-1, self.num_classes)
        columns = self.num_classes + 2
        first = (self._low - 1) * columns - 1
        return torch.add(column, row, alpha=columns).sub_(first)

    def _count_replicated(self, bins: Tensor) -> Tensor:
        """bincount for accelerators, where torch.bincount asks the device for its maximum."""
        size = self._table.numel()
        replica = torch.arange(bins.numel(), device=bins.device).remainder_(_REPLICAS)
        counts = torch.zeros(_REPLICAS * size, dtype=torch.int64, device=bins.device)
        one = torch.ones((), dtype=torch.int64, device=bins.device).expand(bins.shape)
        counts.scatter_add_(0, bins.add_(replica, alpha=size), one)
        return counts.view(_REPLICAS, *self._table.shape).sum(0)

    def _check(self, table: Tensor) -> None:
        """Refuse a table (on the CPU) with counts where no class is."""
        labelled = table[:-1].clone()
        if self._low <= self.ignore_index < self._high:
            labelled[self._row(self.ignore_index)] = 0
        rows, columns = labelled.sum(1), labelled.sum(0)
        rows[self._row(0) : self._row(self.num_classes)] = 0
        if int(rows.sum()):
            raise DataError(self._describe("target", rows, self._low))
        columns[1:-1] = 0
        if int(columns.sum()):
            raise DataError(self._describe("prediction", columns, 0))

    def _row(self, class_id: int) -> int:
        """Row of the table that counts this target id."""
        return class_id - self._low + 1

    def _describe(self, name: str, counts: Tensor, low: int) -> str:
        place = int(counts.nonzero()[0])
        value = f"the id {place - 1 + low}"
        if place == 0:
            value = f"an id below {low}"
        elif place == len(counts) - 1:
            value = f"an id above {place - 2 + low}"
        return (
            f"{name} holds {value} at {int(counts[place])} pixels, but there are "
            f"{self.num_classes} classes (0..{self.num_classes - 1}) and ignore_index is "
            f"{self.ignore_index}: correct the masks, num_classes or ignore_index"
        )

    @property
    def matrix(self) -> Tensor:
        """Counts, rows the true class, columns the predicted one.

        Shape:
            returns: [K, K] int64 on the metric's device; the row of an ignored class is 0

        Raises:
            DataError: an id was neither a class nor ignore_index (on an accelerator; waits for it).
        """
        if self._table.device.type != "cpu":
            self._check(self._table.cpu())
        matrix = self._table[self._row(0) : self._row(self.num_classes), 1:-1].clone()
        if 0 <= self.ignore_index < self.num_classes:
            matrix[self.ignore_index] = 0
        return matrix

    def scores(self) -> Scores:
        """All figures of what was added so far."""
        return scores(self.matrix, ignore_index=self.ignore_index)

    def compute(self) -> dict[str, float]:
        """miou, pixel_accuracy, mean_accuracy and fw_iou; NaN before the first labelled pixel."""
        return self.scores().summary()

    def per_class(self) -> dict[str, list[float]]:
        """iou, precision, recall, f1 and dice of each class; NaN for a class without pixels."""
        return self.scores().per_class()

    def state(self) -> Tensor:
        """What `merge` of another worker needs: the counts, on the CPU."""
        return self._table.cpu().clone()

    def merge(self, states: Sequence[Tensor]) -> None:
        """Replace the counts by the sum of all workers' states.

        Raises:
            ShapeError: a state is of another number of classes.
        """
        for state in states:
            if state.shape != self._table.shape:
                raise ShapeError(
                    f"state is {tuple(state.shape)}, expected {tuple(self._table.shape)}: "
                    "merge metrics of the same num_classes"
                )
        total = torch.stack([state.cpu() for state in states]).sum(0)
        self._table = total.to(self._table.device)

    def reset(self) -> None:
        """Forget everything that was added."""
        self._table.zero_()


def _within(ids: Tensor, low: int, high: int) -> bool:
    """Whether all ids are in low..high-1; for tensors on the CPU, where asking costs little."""
    least, most = torch.aminmax(ids)
    return low <= int(least) and int(most) < high
