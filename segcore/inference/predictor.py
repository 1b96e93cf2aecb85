"""From images of any kind and size to class maps of the same size."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from segcore.inference.images import ImageArray, ImageLike, resize, to_array
from segcore.inference.spec import PackageSpec

MIN_SIDE = 32
MAX_BATCH_LOGITS = 2**27

Refine = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The class of every pixel of one image.

    Args:
        mask: uint8 [H, W] (uint16 above 256 classes), class indices at the image's own size.
        confidence: float32 [H, W] in 0..1, probability of that class; None unless asked for.
    """

    mask: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: NDArray[np.float32] | None = None

    @property
    def height(self) -> int:
        return int(self.mask.shape[0])

    @property
    def width(self) -> int:
        return int(self.mask.shape[1])


class Predictor:
    """A trained model with everything that turns images into class maps.

    Args:
        model: semantic model, in eval mode from here on.
        spec: how images are prepared and what the classes are.
        device: where the model runs.
        digest: of the model package, "" for a model that has none.
        crf: refines probabilities: (image uint8 [H, W, C], probabilities [K, H, W]) -> [K, H, W].
    """

    def __init__(
        self,
        model: nn.Module,
        spec: PackageSpec,
        *,
        device: str | torch.device = "cpu",
        digest: str = "",
        crf: Refine | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.spec = spec
        self.digest = digest
        self.crf = crf
        scale = torch.tensor([spec.mean, spec.std], device=self.device) * 255.0
        self._mean, self._std = scale[:, None, :, None, None]

    def read(self, image: ImageLike) -> ImageArray:
        """Any image as uint8 [H, W, in_channels]; see `segcore.inference.images.to_array`."""
        return to_array(image, self.spec.in_channels)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        batch_size: int = 8,
        *,
        confidence: bool = False,
    ) -> list[Prediction]:
        """Predict one image or several of unlike sizes and kinds.

        Args:
            images: path, encoded bytes, PIL image, uint8 [H, W, C] array, [C, H, W] tensor, a
                sequence of such, or an array [N, H, W, C].
            batch_size: images of equal size that run together; fewer where they are large.
            confidence: also keep the probability of each predicted class.

        Returns:
            One prediction per image, in order.

        Raises:
            DataError: an image cannot be read; names the file.
            ShapeError: an image has channels that the model does not take.
        """
        arrays = [self.read(image) for image in _sequence(images)]
        done: dict[int, Prediction] = {}
        for indices in self._batches([array.shape[:2] for array in arrays], batch_size):
            batch = [arrays[index] for index in indices]
            done.update(zip(indices, self._predict(batch, confidence), strict=True))
        return [done[index] for index in range(len(arrays))]

    @torch.inference_mode()
    def logits(self, images: Sequence[ImageArray]) -> Tensor:
        """Logits [N, K, H, W] at the size of the images (uint8 [H, W, C], all of one size)."""
        size = images[0].shape[:2]
        inputs = [resize(image, self.spec.input_size or size) for image in images]
        pixels = torch.from_numpy(np.stack(inputs)).to(self.device).permute(0, 3, 1, 2)
        x = (pixels.float() - self._mean) / self._std
        height, width = x.shape[-2:]
        right, bottom = max(0, MIN_SIDE - width), max(0, MIN_SIDE - height)
        if right or bottom:
            x = functional.pad(x, (0, right, 0, bottom), mode="replicate")
        logits: Tensor = self.model(x)["out"][..., :height, :width].float()
        if (height, width) != size:
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits

    def _predict(self, images: Sequence[ImageArray], confidence: bool) -> Iterable[Prediction]:
        scores = self.logits(images)
        if self.crf is not None:
            scores = torch.stack(
                [
                    self.crf(torch.from_numpy(image).to(self.device), probabilities)
                    for image, probabilities in zip(images, scores.softmax(1), strict=True)
                ]
            )
        elif confidence:
            scores = scores.softmax(1)
        best, classes = scores.max(1)
        dtype = np.uint8 if self.spec.num_classes <= 256 else np.uint16
        masks = classes.cpu().numpy().astype(dtype)
        for index, mask in enumerate(masks):
            yield Prediction(mask, best[index].cpu().numpy() if confidence else None)

    def _batches(self, sizes: Sequence[tuple[int, ...]], batch_size: int) -> Iterable[list[int]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, size in enumerate(sizes):
            groups.setdefault(size, []).append(index)
        for (height, width), indices in groups.items():
            fitting = MAX_BATCH_LOGITS // (height * width * self.spec.num_classes)
            step = max(1, min(batch_size, fitting))
            yield from (indices[at : at + step] for at in range(0, len(indices), step))


def best_device() -> str:
    """The accelerator of this process, else its CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _sequence(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return images
    return [images]
