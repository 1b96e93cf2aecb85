"""A kind of task is one object: it answers everything that any stage asks about predictions.

A new kind is a folder here with one subclass of `Kind` and one line of `segcore.tasks.TASKS`. No
stage, no loop and no other part of this library asks which kind it is.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from segcore.data.targets import Described, Label, Targets
from segcore.errors import ExportError, OptionError
from segcore.inference.contradictions import Judgement
from segcore.inference.images import ImageArray
from segcore.inference.spec import PackageSpec
from segcore.tasks.base import Batch, Task
from segcore.tasks.predictors import AnyPredictor as AnyPredictor
from segcore.tasks.sections import ClassTable, Section, Shown

Floats = NDArray[np.float64]
Records = Any  # of a split, in the form in which a kind weights them
Columns = tuple[tuple[str, pa.DataType], ...]
Extras = Collection[str]  # names of files that are written beside the main one
Rows = Iterable[Mapping[str, Any]]  # of the manifest
OVERLAYS = "overlays"


@dataclass(frozen=True)
class Output:
    """A file that every prediction becomes: <folder>/<name of the image><suffix>.

    Args:
        make: (image, prediction, spec) -> a picture, or the file's bytes.
    """

    folder: str
    suffix: str
    make: Callable[[ImageArray, Any, PackageSpec], Image.Image | bytes]

    def path(self, name: str) -> str:
        """Of the image `name`, relative to the folder of the predictions."""
        return f"{self.folder}/{name}{self.suffix}"


@dataclass(frozen=True)
class Served:
    """A tensor that the registered model returns; "" names the only one.

    Args:
        dtype: of numpy.
        shape: -1 where it varies.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Kind:
    """One kind of task. Methods that raise NotImplementedError are what a kind has to answer.

    `data` is what describes the classes: the dataset, or the spec of a package (`Described`).
    """

    title: str
    """First words of a model card, "Semantic segmentation"."""

    usage: str
    """A line of Python in the model card that shows what a `prediction` has."""

    predictor: Callable[..., AnyPredictor]
    """Called with (model, spec, device=, digest=, precision=, max_memory_gib=, own options)."""

    figure_names: Mapping[str, str]
    """Figures of a split that people read, by key, in order: {"miou": "mean IoU", ...}."""

    lower_is_better: frozenset[str] = frozenset()
    """Those of them, and of the task's metric, that are better when they are less."""

    headline: str
    """The figure that epochs, trials and versions are compared by; the task's metric has it too."""

    headline_label: str
    """Its short name, in lines of text: "mIoU"."""

    records_stem: str = "records"
    """Name of the report's Parquet file of per-image records."""

    record_columns: Columns
    """What `record` returns, as columns of a Parquet file."""

    row_columns: Columns = ()
    """What `row` returns without extras, as columns of the prediction manifest."""

    extras: tuple[str, ...] = (OVERLAYS,)
    """What `outputs` may be asked for beside the main file."""

    served: tuple[Served, ...]
    """What `serve` returns."""

    judges_labels: bool = False
    """Whether it has `judge`."""

    extends: str | None = None
    """A kind whose labels this one learns from, whose architectures it trains beside its own, and
    as which its packages predict; None where it stands for itself."""

    # Data and training

    def of(self, architecture: str, options: Mapping[str, Any]) -> "Kind":
        """This kind as an architecture needs it, for one whose training depends on it.

        Args:
            architecture: a name that `create_model` takes.
            options: of that architecture.
        """
        return self

    def model_facts(self, data: Described) -> dict[str, int]:
        """`num_classes` and `in_channels` of a model for these classes."""
        return {"num_classes": data.num_classes, "in_channels": data.in_channels}

    def targets(self, data: Described) -> Targets:
        """From labels to batches."""
        raise NotImplementedError

    def create_task(self, dataset: Any = None, **options: Any) -> Task:
        """What `fit` trains by.

        Args:
            dataset: says what the labels are; may be None where `options` say it.
            options: loss, class_weights, options (of the loss), and the kind's own.
        """
        raise NotImplementedError

    def create_loaders(self, dataset: Any, **options: Any) -> tuple[Any, Any]:
        """Loaders of train and val; `segcore.data.loader.create_loaders` unless overridden."""
        from segcore.data.loader import create_loaders

        return create_loaders(dataset, targets=self.targets(dataset), **options)

    def random_batch(self, data: Described, *, size: tuple[int, int], count: int) -> Batch:
        """A made-up batch of `count` images of (height, width), to time a step by."""
        raise NotImplementedError

    # Inference

    def create_predictor(self, model: nn.Module, spec: PackageSpec, **options: Any) -> AnyPredictor:
        """A predictor around a model.

        Raises:
            OptionError: an option that predictions of this kind do not have.
        """
        known = inspect.signature(self.predictor).parameters
        for name in options:
            if name not in known:
                raise OptionError(
                    f"{self.title} has no option {name} of inference: remove it (set {name} to "
                    "null in params.yaml)"
                )
        return self.predictor(model, spec, **options)

    def graph(self, model: nn.Module, spec: PackageSpec) -> nn.Module:
        """What an exported file computes: uint8 images [N, C, H, W] to one tensor.

        Raises:
            ExportError: predictions of this kind are not what one graph computes.
        """
        raise ExportError(
            f"{spec.architecture} cannot be exported: {self.title.lower()} finds a number of "
            "objects that varies, in steps outside the network; models of `segcore models --task "
            "semantic` can be"
        )

    def serve(self, predictions: Sequence[Any]) -> Any:
        """What the registered model returns: an array, or a dict of arrays, as `served` says."""
        raise NotImplementedError

    # Figures

    def record(self, prediction: Any, label: Label, data: Described) -> dict[str, Any]:
        """One image's prediction against its label, as `record_columns` say."""
        raise NotImplementedError

    def records(self, table: pa.Table, data: Described) -> Records:
        """Records of a split from a table with `record_columns`, ready to be weighted.

        What all weightings share (sorting, say) is done here, once.

        Raises:
            ValueError: they are not records of this kind on these classes.
        """
        raise NotImplementedError

    def figures(self, records: Records, weights: Floats) -> dict[str, Floats]:
        """Every figure of `figure_names` under many weightings of the images at once.

        The figure of a whole split, not a mean over its images, in which an image of weight 2
        counts as if it were there twice. NaN where a figure is not defined.

        Shape:
            weights: [R, B], >= 0
            returns: [R] each
        """
        raise NotImplementedError

    def image_scores(self, records: Records) -> Floats:
        """How well each image [B] was done, in 0..1, 1 the best; NaN where it has nothing."""
        raise NotImplementedError

    def class_table(self, records: Records, other: Records | None, data: Described) -> ClassTable:
        """Figures by class, with those of the champion (`other`) in the first column."""
        raise NotImplementedError

    def sections(
        self, records: Records, other: Records | None, data: Described
    ) -> Sequence[Section]:
        """What the report shows beside the common parts; the class table among them."""
        return [self.class_table(records, other, data)]

    def mode(self, figure: str) -> str:
        """ "max" or "min": which values of a figure are better."""
        return "min" if figure in self.lower_is_better else "max"

    def judge(self, predictor: Any, image: ImageArray, label: Label) -> Judgement:
        """Where a model that was not trained on a label speaks against it."""
        raise NotImplementedError

    # Pictures

    def overlay(self, image: ImageArray, prediction: Any, spec: PackageSpec) -> Image.Image:
        """A prediction over its image, at the image's size."""
        raise NotImplementedError

    def shown(self, prediction: Any, spec: PackageSpec) -> list[Shown]:
        """What `overlay` shows, the most important first; `legend` unless overridden."""
        return [Shown(name, color) for name, color in self.legend(spec)]

    def panel(
        self, image: ImageArray, label: Label, prediction: Any, spec: PackageSpec
    ) -> Mapping[str, Image.Image]:
        """Pictures of one size for the report, by title: image, label, prediction, errors."""
        raise NotImplementedError

    def contact_sheet(
        self,
        images: Sequence[ImageArray],
        predictions: Sequence[Any],
        labels: Sequence[Label],
        spec: PackageSpec,
    ) -> Image.Image:
        """A few images with predictions, and labels where there are any, as one picture."""
        raise NotImplementedError

    def legend(self, data: Described) -> list[tuple[str, tuple[int, int, int]]]:
        """Names and colours that the panels use."""
        return list(zip(data.classes, data.palette, strict=True))

    # Files

    def outputs(self, extras: Extras = ()) -> tuple[Output, ...]:
        """The files of a prediction, the main one first, then the `extras` that are asked for."""
        raise NotImplementedError

    def predictor_options(self, extras: Extras) -> dict[str, Any]:
        """What a predictor must be told so that `outputs` has what the extras need."""
        return {}

    def columns(self, extras: Extras = ()) -> Columns:
        """What `row` returns, as columns of the manifest: `row_columns`, and those of extras."""
        return self.row_columns

    def row(self, prediction: Any, spec: PackageSpec, extras: Extras = ()) -> dict[str, Any]:
        """What the manifest says of a prediction: `columns`, in the values of Arrow."""
        return {}

    def write_job(self, out: Path, rows: Rows, spec: PackageSpec, extras: Extras = ()) -> None:
        """Write what a whole job becomes (COCO JSON, say) beside the manifest.

        Args:
            out: folder of the predictions.
            rows: of the manifest, of every image that was predicted by this model.
            extras: that were asked for.
        """
