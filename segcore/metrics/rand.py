"""How well regions are kept apart: the foreground-restricted Rand score of the ISBI challenge.

Reference: Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for
connectomics", Frontiers in Neuroanatomy 2015, doi:10.3389/fnana.2015.00142.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.errors import ShapeError

Ids = NDArray[np.integer]


class RandScore:
    """Rand score of the regions that a binary map separates, over everything that was added.

    Regions are the 4-connected components of `foreground` in each image. Two pixels of the true
    foreground agree if they share a region in both maps: precision is the share of the pairs
    together in the prediction that belong together, recall the converse, and the score weighs
    both alike (V_Rand at alpha = 0.5). Pixels are paired within their image alone.

    A wide predicted border is no error here: as the challenge thins borders before it compares,
    each predicted background pixel joins the nearest predicted region.

    Args:
        foreground: class id of the regions; every other id is border, and ignored pixels count as
            little as border does.
    """

    def __init__(self, foreground: int = 1) -> None:
        self.foreground = foreground
        # Pairs together in both, in the prediction, in the target.
        self._pairs = torch.zeros(3, dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch; computes on the CPU.

        Shape:
            prediction: [N, H, W] integer class ids
            target: [N, H, W] integer class ids

        Raises:
            ShapeError: the shapes do not belong together.
        """
        if prediction.shape != target.shape or target.dim() != 3:
            raise ShapeError(
                f"prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}: "
                "give class ids [N, H, W] of one shape"
            )
        for guess, truth in zip(prediction.cpu().numpy(), target.cpu().numpy(), strict=True):
            self._pairs += torch.from_numpy(self._pairs_of(guess, truth))

    def _pairs_of(self, prediction: Ids, target: Ids) -> NDArray[np.float64]:
        from scipy.ndimage import label

        inside = target == self.foreground
        true_regions = label(inside)[0][inside]
        predicted_regions = _grown(prediction == self.foreground)[inside]
        return pair_counts(predicted_regions, true_regions)

    def compute(self) -> dict[str, float]:
        """rand_score, rand_precision (low: regions merged), rand_recall (low: split), in 0..1.

        NaN where no foreground was met.
        """
        both, predicted, true = self._pairs.tolist()
        if not true:
            return dict.fromkeys(("rand_score", "rand_precision", "rand_recall"), float("nan"))
        return {
            "rand_score": 2 * both / (predicted + true),
            "rand_precision": both / predicted,
            "rand_recall": both / true,
        }

    def state(self) -> Tensor:
        """What `merge` of another worker needs: the sums."""
        return self._pairs.clone()

    def merge(self, states: Sequence[Tensor]) -> None:
        """Replace the sums by those of all workers together."""
        self._pairs = torch.stack(list(states)).sum(0)


def pair_counts(first: Ids, second: Ids) -> NDArray[np.float64]:
    """Ordered pairs of elements, each with itself included, that share a label: in both, in each.

    Shape:
        first, second: [M] labels
        returns: [3] float64, sums of squared counts
    """
    rows = np.unique(first, return_inverse=True)[1].astype(np.int64)
    columns = np.unique(second, return_inverse=True)[1].astype(np.int64)
    cells = np.unique(rows * (columns.max(initial=0) + 1) + columns, return_counts=True)[1]
    sizes = [cells, np.bincount(rows), np.bincount(columns)]
    return np.array([np.square(size, dtype=np.float64).sum() for size in sizes])


def _grown(regions: NDArray[np.bool_]) -> Ids:
    """Connected components, grown until they touch; one single region where there is none."""
    from scipy.ndimage import distance_transform_edt, label

    labels: Ids = label(regions)[0]
    if not regions.any():
        return labels
    nearest = distance_transform_edt(~regions, return_distances=False, return_indices=True)
    grown: Ids = labels[tuple(nearest)]
    return grown
