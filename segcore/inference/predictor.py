"""From images of any kind and size to class maps of the same size."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from segcore.inference import tiling
from segcore.inference.augmented import Augmented
from segcore.inference.images import MAX_MEGAPIXELS, ImageArray, ImageLike, resize, to_array
from segcore.inference.memory import SURE_BYTES
from segcore.inference.network import Network, PixelNetwork
from segcore.inference.spec import PackageSpec
from segcore.machine import GIB, available_memory_gib

MAX_BATCH_LOGITS = 2**27
FREE_SHARE = 0.5
FLOAT_BYTES = 4
SCORE_COPIES = 3  # scores, their softmax or sums, and what finding the largest takes
CRF_BYTES = 2**11  # a pixel's share of a lattice and its filters

Refine = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The class of every pixel of one image.

    Args:
        mask: uint8 [H, W] (uint16 above 256 classes), class indices at the image's own size.
        confidence: float32 [H, W] in 0..1, probability of that class; None unless asked for.
        probabilities: float16 [K, H, W] in 0..1, of every class; None unless asked for.
    """

    mask: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float16] | None = None

    @property
    def height(self) -> int:
        return int(self.mask.shape[0])

    @property
    def width(self) -> int:
        return int(self.mask.shape[1])


class Predictor:
    """A trained model with everything that turns images into class maps.

    An image whose pass would not fit in memory is predicted in overlapping tiles
    (`segcore.inference.tiling`); a `crf` then sees one tile at a time.

    Args:
        model: semantic model, in eval mode from here on; or what runs it already, as it is (an
            exported file, say), whatever device and precision are.
        spec: how images are prepared and what the classes are.
        device: where the model runs.
        digest: of the model package, "" for a model that has none.
        crf: refines probabilities: (image uint8 [H, W, C], probabilities [K, H, W]) -> [K, H, W].
        precision: "fp32", or "bf16" or "fp16" by autocast; scores are float32 in any case.
        max_memory_gib: that a pass may take; None: half of what is free on the device.
        max_megapixels: largest image file that is decoded; None: any.
        tta: test-time augmentation, "flip", "scale" or both; see `augmented.Augmented`.
        confidence: keep the probability of each predicted class, unless a call says otherwise.
        probabilities: keep those of every class: 2 bytes a class and pixel, of large images too.

    Raises:
        OptionError: no such precision.
        UnknownNameError: no such augmentation.
    """

    def __init__(
        self,
        model: nn.Module | PixelNetwork,
        spec: PackageSpec,
        *,
        device: str | torch.device = "cpu",
        digest: str = "",
        crf: Refine | None = None,
        precision: str = "fp32",
        max_memory_gib: float | None = None,
        max_megapixels: float | None = MAX_MEGAPIXELS,
        tta: Sequence[str] = (),
        confidence: bool = False,
        probabilities: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.network: PixelNetwork = (
            Network(model, spec, device=self.device, precision=precision)
            if isinstance(model, nn.Module)
            else model
        )
        self.model = self.network.model
        if tta:
            self.network = Augmented(self.network, tta)
        self.confidence = confidence
        self.keeps_all = probabilities
        self.precision = precision
        self.spec = spec
        self.digest = digest
        self.crf = crf
        self.max_memory_gib = max_memory_gib
        self.max_megapixels = max_megapixels

    def read(self, image: ImageLike) -> ImageArray:
        """Any image as uint8 [H, W, in_channels]; see `segcore.inference.images.to_array`."""
        return to_array(image, self.spec.in_channels, max_megapixels=self.max_megapixels)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        batch_size: int = 8,
        *,
        confidence: bool | None = None,
    ) -> list[Prediction]:
        """Predict one image or several of unlike sizes and kinds.

        Args:
            images: path, encoded bytes, PIL image, uint8 [H, W, C] array, [C, H, W] tensor, a
                sequence of such, or an array [N, H, W, C].
            batch_size: images of equal size that run together; fewer where they are large.
            confidence: also keep the probability of each predicted class; None: as the predictor
                was told.

        Returns:
            One prediction per image, in order.

        Raises:
            DataError: an image cannot be read; names the file.
            ShapeError: an image has channels that the model does not take.
        """
        arrays = [self.read(image) for image in as_sequence(images)]
        confidence = self.confidence if confidence is None else confidence
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
        logits = self.network(torch.from_numpy(np.stack(inputs)))
        if logits.shape[-2:] != size:
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits

    @torch.inference_mode()
    def probabilities(self, image: ImageLike) -> Tensor:
        """Probability of every class, float32 [K, H, W] in host memory; the CRF's if there is one.

        All classes of an image are kept at once, which `__call__` never does.
        """
        array = self.read(image)
        size = array.shape[:2]
        tile = self._tile(size)
        if tile is None:
            return self._refine(array, self.logits([array])[0]).float().cpu()
        bands = tiling.blend(self._tile_run(array), size, tile=tile)
        shares = [(band.softmax(0) if self.crf is None else band).cpu() for _, band in bands]
        return torch.cat(shares, dim=1)

    @torch.inference_mode()
    def _predict(self, images: Sequence[ImageArray], confidence: bool) -> list[Prediction]:
        tile = self._tile(images[0].shape[:2])
        if tile is not None:
            return [self._predict_tiles(image, tile, confidence) for image in images]
        scores = self.logits(images)
        if self.crf is not None:
            pairs = zip(images, scores, strict=True)
            scores = torch.stack([self._refine(image, one) for image, one in pairs])
        best, classes = self._classes(scores, confidence)
        masks = classes.cpu().numpy().astype(self._dtype, copy=False)
        shares = best.cpu().numpy() if confidence else [None] * len(masks)
        every = [self._every(one) if self.keeps_all else None for one in scores]
        return [Prediction(*kept) for kept in zip(masks, shares, every, strict=True)]

    def _predict_tiles(self, image: ImageArray, tile: int, confidence: bool) -> Prediction:
        size = image.shape[:2]
        mask: Any = np.empty(size, self._dtype)
        shares = np.empty(size, np.float32) if confidence else None
        every = np.empty((self.spec.num_classes, *size), np.float16) if self.keeps_all else None
        for top, scores in tiling.blend(self._tile_run(image), size, tile=tile):
            best, classes = self._classes(scores[None], confidence)
            bottom = top + scores.shape[-2]
            mask[top:bottom] = classes[0].cpu().numpy()
            if shares is not None:
                shares[top:bottom] = best[0].cpu().numpy()
            if every is not None:
                every[:, top:bottom] = self._every(scores)
        return Prediction(mask, shares, every)

    def _every(self, scores: Tensor) -> NDArray[np.float16]:
        """Probabilities of all classes [K, h, w]; a CRF's scores are such."""
        shares = scores.float().softmax(0) if self.crf is None else scores
        return np.ascontiguousarray(shares.half().cpu().numpy())

    def _tile_run(self, image: ImageArray) -> tiling.Run:
        """Scores of parts of an image: passes of the model, or its one pass at training size."""
        size = image.shape[:2]
        small: Tensor | None = None
        if self.spec.input_size:
            resized = np.ascontiguousarray(resize(image, self.spec.input_size))
            small = self.network(torch.from_numpy(resized)[None])[0]

        def run(top: int, bottom: int, left: int, right: int) -> Tensor:
            part = np.ascontiguousarray(image[top:bottom, left:right])
            if small is not None:
                scores = tiling.upsampled(small, size, (top, bottom, left, right))
            else:
                scores = self.network(torch.from_numpy(part)[None])[0]
            return scores if self.crf is None else self._refine(part, scores)

        return run

    def _refine(self, image: ImageArray, scores: Tensor) -> Tensor:
        """Probabilities [K, H, W] after the CRF."""
        if self.crf is None:
            return scores.softmax(0)
        return self.crf(torch.from_numpy(image).to(self.device), scores.softmax(0))

    def _classes(self, scores: Tensor, confidence: bool) -> tuple[Tensor, Tensor]:
        # On CPUs `max` is as fast in both layouts; `argmax` takes four times as long in one.
        if confidence and self.crf is None:
            scores = scores.softmax(1)
        best, classes = scores.max(1)
        return best, classes

    @property
    def _dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.spec.num_classes <= 256 else np.uint16

    def _batches(self, sizes: Sequence[tuple[int, ...]], batch_size: int) -> Iterable[list[int]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, size in enumerate(sizes):
            groups.setdefault(size, []).append(index)
        for (height, width), indices in groups.items():
            fitting = MAX_BATCH_LOGITS // (height * width * self.spec.num_classes)
            if batch_size > 1 and height * width * batch_size * SURE_BYTES > self._budget:
                fitting = min(fitting, int(self._budget / (height * width * self._pixel_bytes)))
            step = max(1, min(batch_size, fitting))
            yield from (indices[at : at + step] for at in range(0, len(indices), step))

    def _tile(self, size: tuple[int, ...]) -> int | None:
        """Side of the tiles that an image of (height, width) is predicted in; None: whole."""
        height, width = size
        if height * width * SURE_BYTES <= self._budget:
            return None
        return tiling.choose_tile(
            (height, width),
            pixel_bytes=self._pixel_bytes,
            score_bytes=SCORE_COPIES * FLOAT_BYTES * (self.spec.num_classes + 1),
            budget=self._budget,
        )

    @cached_property
    def _budget(self) -> float:
        gib = self.max_memory_gib
        if gib is None:
            gib = FREE_SHARE * available_memory_gib(str(self.device))
        return gib * GIB

    @cached_property
    def _pixel_bytes(self) -> float:
        """That predicting a pixel takes: the pass, measured once, and what follows it."""
        after = SCORE_COPIES * FLOAT_BYTES * self.spec.num_classes
        after += CRF_BYTES if self.crf is not None else 0
        if self.spec.input_size:
            return after
        return after + self.network.bytes_per_pixel()


def best_device() -> str:
    """The accelerator of this process, else its CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def as_sequence(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    """One image or several as a sequence of images."""
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return images
    return [images]
