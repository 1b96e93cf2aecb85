"""From images of any kind and size to the objects on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.data.instances import thing_labels
from segcore.errors import OptionError
from segcore.inference.images import ImageArray, ImageLike
from segcore.tasks.instance.detecting import DetectingPredictor, Output
from segcore.tasks.instance.detections import Detections, Size, join


@dataclass(frozen=True, eq=False)
class InstancePrediction:
    """The objects on one image, the highest score first.

    Args:
        detections: boxes, masks, scores, and labels as the model gives them.
        classes: int64 [n], class index of each.
    """

    detections: Detections
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.detections)

    @property
    def height(self) -> int:
        return self.detections.size[0]

    @property
    def width(self) -> int:
        return self.detections.size[1]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """float32 [n, 4] of (x0, y0, x1, y1) in pixels."""
        return self.detections.boxes

    @property
    def scores(self) -> NDArray[np.float32]:
        """float32 [n] in 0..1."""
        return self.detections.scores

    @property
    def counts(self) -> tuple[str, ...]:
        """Compressed COCO run lengths of each mask."""
        return self.detections.counts

    @property
    def masks(self) -> NDArray[np.bool_]:
        """bool [n, H, W]; decoded anew each time, as they take n times the image."""
        masks = np.zeros((len(self), self.height, self.width), dtype=bool)
        for mask, (window, (top, left)) in zip(masks, self.detections.windows, strict=True):
            mask[top : top + window.shape[0], left : left + window.shape[1]] = window
        return masks

    def id_map(self) -> NDArray[np.uint16] | NDArray[np.int32]:
        """[H, W]: 0 for none, else 1 + the place of an object; the higher score on top.

        uint16 up to 65,535 objects, int32 above.
        """
        ids = self.detections.id_map()
        return ids.astype(np.uint16) if len(self) < 2**16 else ids

    def above(self, score: float) -> "InstancePrediction":
        """The objects of this score or more."""
        kept = np.flatnonzero(self.scores >= score)
        return InstancePrediction(self.detections.take(kept), self.classes[kept])


class InstancePredictor(DetectingPredictor):
    """A trained model with everything that turns images into objects; see `DetectingPredictor`.

    An image whose pass would not fit in memory is predicted in overlapping tiles, whose objects
    are then told apart (`segcore.tasks.instance.detections.join`).
    """

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], batch_size: int = 8
    ) -> list[InstancePrediction]:
        """Predict one image or several of unlike sizes and kinds.

        Args:
            images: path, encoded bytes, PIL image, uint8 [H, W, C] array, [C, H, W] tensor, a
                sequence of such, or an array [N, H, W, C].
            batch_size: images that run together; fewer where they are large.

        Returns:
            One prediction per image, in order.

        Raises:
            DataError: an image cannot be read; names the file.
            ShapeError: an image has channels that the model does not take.
        """
        return self.predict(images, batch_size)

    def whole(self, output: Output, size: Size) -> InstancePrediction:
        """The objects of one output."""
        return self._named(self.detections(output, size))

    def tiled(self, image: ImageArray, tile: int) -> InstancePrediction:
        """The objects of all tiles."""
        parts = []
        for output, corner, _ in self.tiles(image, tile):
            masks = output["masks"]
            parts.append((self.detections(output, (masks.shape[-2], masks.shape[-1])), corner))
        return self._named(join(parts, (image.shape[0], image.shape[1])))

    def _named(self, found: Detections) -> InstancePrediction:
        return InstancePrediction(found, class_indices(found.labels, self.spec.things))


def class_indices(labels: NDArray[np.int64], things: Sequence[bool]) -> NDArray[np.int64]:
    """Class index of each label.

    Raises:
        OptionError: a label is none of a thing.
    """
    table = np.array([-1, *thing_labels(things)], dtype=np.int64)
    if labels.size and not 1 <= labels.min() <= labels.max() < len(table):
        raise OptionError(
            f"the model gave label {labels.max()}, the package names {len(table) - 1} things: "
            f"build the model with num_classes={len(table)}"
        )
    return table[labels]
