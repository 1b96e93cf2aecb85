"""From images of any kind and size to things and stuff."""

from collections.abc import Sequence

import numpy as np

from segcore.inference.images import ImageArray, ImageLike
from segcore.tasks.instance.detecting import DetectingPredictor, Output
from segcore.tasks.instance.detections import Size, join
from segcore.tasks.panoptic.segments import SCORE, Panoptic, merged, of_output, stuff_classes


class PanopticPredictor(DetectingPredictor):
    """A trained model with everything that turns images into segments; see `DetectingPredictor`.

    `min_score` is of things, 0.5 unless it is given.
    """

    default_score = SCORE

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], batch_size: int = 8
    ) -> list[Panoptic]:
        """Predict one image or several of unlike sizes and kinds.

        Args:
            images: path, encoded bytes, PIL image, uint8 [H, W, C] array, [C, H, W] tensor, a
                sequence of such, or an array [N, H, W, C].
            batch_size: images that run together; fewer where they are large.

        Returns:
            One picture per image, in order.

        Raises:
            DataError: an image cannot be read; names the file.
            ShapeError: an image has channels that the model does not take.
        """
        return self.predict(images, batch_size)

    def whole(self, output: Output, size: Size) -> Panoptic:
        """The picture of one output."""
        return of_output(output, size, self.spec.things, min_score=self.min_score)

    def tiled(self, image: ImageArray, tile: int) -> Panoptic:
        """Things of all tiles, and stuff of each tile's own part."""
        size = (image.shape[0], image.shape[1])
        stuff = np.empty(size, dtype=np.int16)
        parts = []
        for output, corner, (top, bottom, left, right) in self.tiles(image, tile):
            classes = stuff_classes(output["semantic"], self.spec.things)
            own = slice(top - corner[0], bottom - corner[0])
            stuff[top:bottom, left:right] = classes[own, left - corner[1] : right - corner[1]]
            masks = output["masks"]
            parts.append((self.detections(output, (masks.shape[-2], masks.shape[-1])), corner))
        return merged(stuff, join(parts, size), self.spec.things, min_score=self.min_score)
