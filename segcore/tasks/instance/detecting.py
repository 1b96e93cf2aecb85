"""From images of any kind and size to a detector's outputs: batches, memory, tiles."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from segcore.errors import OptionError, SegcoreError
from segcore.inference import tiling
from segcore.inference.images import MAX_MEGAPIXELS, ImageArray, ImageLike, resize, to_array
from segcore.inference.memory import PROBE, SURE_BYTES, bytes_per_pixel
from segcore.inference.network import Network
from segcore.inference.predictor import FREE_SHARE, as_sequence
from segcore.inference.spec import PackageSpec
from segcore.machine import GIB, available_memory_gib
from segcore.tasks.instance.detections import Detections, Size, compress

MIN_SIDE = 64  # models of instances take no less
MASK_BYTES = 1000  # a pixel's share of a hundred masks of probabilities and of their copies

Output = dict[str, Tensor]
Window = tuple[int, int, int, int]


class DetectionNetwork(Network):
    """A model of torchvision's detection convention, with normalisation and autocast around it."""

    @torch.inference_mode()
    def detect(self, images: Sequence[ImageArray]) -> list[Output]:
        """Outputs of uint8 images [H, W, C] of any sizes, boxes and masks at each image's own."""
        inputs, sizes = [], []
        for image in images:
            x = (
                torch.from_numpy(np.require(image, requirements=["C", "W"]))
                .to(self.device)
                .permute(2, 0, 1)
            )
            x = ((x.float() - self._mean[0]) / self._std[0]).contiguous()
            size = (x.shape[-2], x.shape[-1])
            right, bottom = max(0, MIN_SIDE - size[1]), max(0, MIN_SIDE - size[0])
            if right or bottom:
                x = functional.pad(x[None], (0, right, 0, bottom), mode="replicate")[0]
            inputs.append(x)
            sizes.append(size)
        pairs = zip(self.forward_list(inputs), sizes, strict=True)
        return [_cropped(output, size) for output, size in pairs]

    def _fold(self, model: nn.Module, spec: PackageSpec) -> None:
        """Its batch norms stay: detections are no scores that could be compared."""

    def forward_list(self, inputs: Sequence[Tensor]) -> list[Output]:
        """Outputs of normalised images [C, H, W]."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            outputs: list[Output] = self.model(list(inputs))
        return outputs


def _cropped(output: Output, size: Size) -> Output:
    """An output without the padding right and below."""
    height, width = size
    if output["masks"].shape[-2:] == (height, width):
        return output
    limits = output["boxes"].new_tensor([width, height, width, height])
    maps = {key: output[key] for key in ("masks", "semantic") if key in output}
    cropped = {key: value[..., :height, :width] for key, value in maps.items()}
    boxes = output["boxes"].clamp_min(0).minimum(limits)
    return output | cropped | {"boxes": boxes}


class DetectingPredictor:
    """What predictors of objects share: reading, batches, memory, tiles.

    Args:
        model: in torchvision's detection convention, in eval mode from here on.
        spec: how images are prepared and what the classes are.
        device: where the model runs.
        digest: of the model package, "" for a model that has none.
        precision: "fp32", or "bf16" or "fp16" by autocast.
        max_memory_gib: that a pass may take; None: half of what is free on the device.
        max_megapixels: largest image file that is decoded; None: any.
        min_score: least score of an object; None takes `default_score`.

    Raises:
        OptionError: no such precision, or a score out of range.
    """

    default_score = 0.0

    def __init__(
        self,
        model: nn.Module,
        spec: PackageSpec,
        *,
        device: str | torch.device = "cpu",
        digest: str = "",
        precision: str = "fp32",
        max_memory_gib: float | None = None,
        max_megapixels: float | None = MAX_MEGAPIXELS,
        min_score: float | None = None,
    ) -> None:
        min_score = self.default_score if min_score is None else min_score
        if not 0 <= min_score <= 1:
            raise OptionError(f"min_score is {min_score}: give a score within 0..1")
        self.device = torch.device(device)
        self.network = DetectionNetwork(model, spec, device=self.device, precision=precision)
        self.model = self.network.model
        self.class_agnostic = getattr(self.model, "proposals", False) is True
        self.precision = precision
        self.spec = spec
        self.digest = digest
        self.max_memory_gib = max_memory_gib
        self.max_megapixels = max_megapixels
        self.min_score = min_score

    def read(self, image: ImageLike) -> ImageArray:
        """Any image as uint8 [H, W, in_channels]; see `segcore.inference.images.to_array`."""
        return to_array(image, self.spec.in_channels, max_megapixels=self.max_megapixels)

    @torch.inference_mode()
    def predict(self, images: ImageLike | Sequence[ImageLike], batch_size: int) -> list[Any]:
        """One prediction per image, in order; see `__call__` of the subclasses."""
        arrays = [self.read(image) for image in as_sequence(images)]
        done: dict[int, Any] = {}
        for indices in self._batches([array.shape[:2] for array in arrays], batch_size):
            batch = [arrays[index] for index in indices]
            done.update(zip(indices, self._predict(batch), strict=True))
        return [done[index] for index in range(len(arrays))]

    def whole(self, output: Output, size: Size) -> Any:
        """The prediction of an image from the model's output."""
        raise NotImplementedError

    def tiled(self, image: ImageArray, tile: int) -> Any:
        """The prediction of an image too large for one pass."""
        raise NotImplementedError

    def _predict(self, images: Sequence[ImageArray]) -> list[Any]:
        size = self.spec.input_size
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        tile = self._tile(sizes[0])
        if tile is not None and size is None:
            return [self.tiled(image, tile) for image in images]
        inputs = [resize(image, size or own) for image, own in zip(images, sizes, strict=True)]
        outputs = self.network.detect(inputs)
        return [self.whole(output, own) for output, own in zip(outputs, sizes, strict=True)]

    def detections(self, output: Output, size: Size) -> Detections:
        """The objects of an output, at (height, width) `size`."""
        return compress(output, size, min_score=self.min_score, class_agnostic=self.class_agnostic)

    def tiles(self, image: ImageArray, tile: int) -> Iterator[tuple[Output, Size, Window]]:
        """The output for each tile, its (top, left) corner in the image, and what of the image is
        its own: (top, bottom, left, right)."""
        overlap = tiling.overlap_of(tile)
        rows, columns = (tiling.spans(side, tile, overlap) for side in image.shape[:2])
        for row in rows:
            for column in columns:
                part = image[row.start : row.stop, column.start : column.stop]
                own = (row.first, row.last, column.first, column.last)
                yield self.network.detect([part])[0], (row.start, column.start), own

    def _batches(self, sizes: Sequence[tuple[int, ...]], batch_size: int) -> Iterable[list[int]]:
        """Images of like sizes together, as the smaller ones of a batch are padded."""
        order = sorted(range(len(sizes)), key=lambda index: sizes[index])
        batch: list[int] = []
        for index in order:
            grown = [*batch, index]
            area = np.prod([max(sizes[i][axis] for i in grown) for axis in (0, 1)]) * len(grown)
            alone = self._tile(sizes[index]) is not None
            if batch and (alone or len(grown) > batch_size or not self._fits(float(area))):
                yield batch
                grown = [index]
            batch = grown
        if batch:
            yield batch

    def _fits(self, pixels: float) -> bool:
        return pixels * SURE_BYTES <= self._budget or pixels * self._pixel_bytes <= self._budget

    def _tile(self, size: tuple[int, ...]) -> int | None:
        """Side of the tiles that an image of (height, width) is predicted in; None: whole."""
        height, width = size
        if self.spec.input_size or self._fits(height * width):
            return None
        return tiling.choose_tile(
            (height, width), pixel_bytes=self._pixel_bytes, score_bytes=0, budget=self._budget
        )

    @cached_property
    def _budget(self) -> float:
        gib = self.max_memory_gib
        if gib is None:
            gib = FREE_SHARE * available_memory_gib(str(self.device))
        return gib * GIB

    @cached_property
    def _pixel_bytes(self) -> float:
        """That a pixel takes: the pass, measured once, and masks."""
        if self.spec.input_size:
            return MASK_BYTES
        x = torch.zeros(1, self.spec.in_channels, PROBE, PROBE, device=self.device)

        def run(x: Tensor) -> Any:
            return self.network.forward_list([x[0]])

        try:
            return MASK_BYTES + bytes_per_pixel(run, x)
        except (RuntimeError, SegcoreError):  # a model that does not take this size
            return SURE_BYTES
