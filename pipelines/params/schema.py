"""params.yaml as typed, frozen models: the only reader of that file.

Values live in params.yaml alone; types, ranges and help live here alone, so no field has a default.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from pipelines.params.file import explain, read_yaml, unknown_key
from pipelines.params.inference import EvaluateParams, PredictParams
from pipelines.params.options import drop_unset
from pipelines.params.section import Address, Fraction, Names, PlannedSection, Range, Section, Size
from pipelines.params.space import Around, Drawn
from pipelines.params.tune import TuneParams
from pipelines.params.workers import Workers
from segcore.datasets import list_datasets
from segcore.errors import OptionError, unknown_name

OWN = "own"


def known_task(name: str | None) -> str | None:
    """Refuse a kind of task that there is not; null passes."""
    if name is None:
        return None
    from segcore.tasks import TASKS  # imports torch, so only where a task is set

    if name not in TASKS:
        raise ValueError(str(unknown_name("task", name, TASKS)))
    return name


class DataParams(Section):
    name: str = Field(description=f"one of {', '.join(list_datasets())}")
    path: str = Field(
        description="folder: your images and masks; a published dataset: an unpacked copy of it"
    )
    options: dict[str, Any] = Field(description="options of the dataset itself")
    classes: Names | None = Field(description="folder: class names in index order")
    ignore_index: int = Field(ge=0, le=65535, description="folder: mask value that counts nowhere")
    val_fraction: Fraction = Field(description="share of validation images where no split is given")
    test_fraction: Fraction = Field(description="share of test images where no split is given")
    seed: int = Field(ge=0, description="of rendering and of splits")
    size: Size | None = Field(
        description="(height, width) of the stored images; null: the source's"
    )
    image_encoding: Literal["keep", "png", "jpeg", "raw"] = Field(description="of stored images")
    rows_per_shard: int = Field(ge=1)
    max_rejected: int = Field(ge=0, description="bad inputs tolerated before prepare fails")
    labelled_fraction: float | None = Field(
        gt=0, le=1, description="share of the training images that keep masks; null: all"
    )
    labelled_per_class: int | None = Field(
        ge=1, description="images of each class that keep masks; null: all"
    )
    labelled_seed: int = Field(ge=0, description="of which images keep theirs")
    root: Address = Field(
        description="where shards go: data, a mounted share, or s3://bucket/prefix"
    )
    task: Annotated[str | None, AfterValidator(known_task)] = Field(
        description="kind of task that is trained; null: the model's, else the first with labels"
    )
    cache: Literal["none", "ram", "disk"] = Field(description="where decoded images are kept")


class ModelParams(PlannedSection):
    name: str = Field(description="a name of segcore.list_models(), or torchvision:<builder>")
    pretrained: bool | str = Field(description="true: backbone weights; a path: own checkpoint")
    options: Annotated[dict[str, Any], AfterValidator(drop_unset)] = Field(
        description="keyword options of the architecture; a common one that is null is not given"
    )


class LossParams(PlannedSection):
    name: str = Field(description="a name of segcore.list_losses(); own: that of a detector")
    class_weights: Literal["none", "median_frequency", "inverse_log", "sqrt_inverse_log"]
    options: dict[str, Any] = Field(description="keyword options of the loss")
    terms: list[dict[str, Any]] = Field(
        description="weighted sum instead of name: [{name: dice, weight: 1}, ...]"
    )

    @property
    def label(self) -> str:
        """Names of the terms, "dice + focal"; "" for a model with losses of its own."""
        names = [str(term.get("name")) for term in self.terms] or [self.name]
        return " + ".join(name for name in names if name != OWN)

    def task_options(self) -> dict[str, Any]:
        """Keyword arguments of `segcore.create_task` that say which loss."""
        name, options = self.name, self.options
        if self.terms:
            name, options = "sum", {"terms": self.terms}
        return {"loss": name, "class_weights": self.class_weights, "options": options}


class AugmentParams(PlannedSection):
    crop: Size | None = Field(description="(height, width) of training crops; null: whole images")
    class_crops: Fraction = Field(description="share of crops that are drawn by class, rare first")
    hflip: Fraction = Field(description="probability of mirroring left to right")
    vflip: Fraction = Field(description="probability of mirroring top to bottom")
    rot90: Fraction = Field(description="probability of a quarter turn; of square crops only")
    scale: Range = Field(description="random resize factor, min and max")
    translate_px: int = Field(ge=0, description="largest random shift")
    rotate_deg: float = Field(ge=0, le=180)
    color: float = Field(ge=0, le=1, description="strength of brightness, contrast, saturation")
    elastic_alpha: float = Field(ge=0, description="displacement in pixels; 0: off")
    elastic_sigma: float = Field(gt=0, description="smoothness of the displacement in pixels")


class TrainParams(PlannedSection):
    budget_minutes: float = Field(
        gt=0, description="what the plan may spend on search and training"
    )
    epochs: int = Field(ge=1)
    max_minutes: float | None = Field(gt=0, description="ends by the clock, schedule included")
    epoch_steps: int | None = Field(ge=1, description="batches of an epoch; null: one pass")
    refit: bool = Field(description="train on the validation images too, and keep the last weights")
    progressive: float = Field(
        ge=0, lt=1, description="share of the run that sees pictures at half size first; 0: none"
    )
    batch_size: int = Field(ge=1, description="over all workers together")
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    momentum: float = Field(ge=0, lt=1)
    schedule: Literal["constant", "poly", "cosine", "step"]
    warmup_fraction: Fraction
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    accumulate: int = Field(ge=1, description="batches per optimiser step")
    clip_norm: float | None = Field(gt=0)
    ema_decay: float | None = Field(gt=0, lt=1)
    loader_workers: int = Field(ge=0)
    checkpoint_steps: int | None = Field(ge=1, description="a checkpoint every N steps as well")
    overlay_epochs: int = Field(ge=1, description="validation overlays to MLflow every N epochs")
    log_gradients: bool = Field(description="histograms of each layer's gradients to MLflow")
    seed: int = Field(ge=0)
    options: dict[str, Any] = Field(description="keyword options of the kind of task")
    augment: AugmentParams

    def fit_options(self) -> dict[str, Any]:
        """Keyword arguments of `segcore.fit`."""
        own = {"batch_size", "loader_workers", "checkpoint_steps", "overlay_epochs"}
        own |= {"log_gradients", "augment", "budget_minutes", "epoch_steps", "refit", "options"}
        return {**self.model_dump(exclude=own), "report_steps": self.checkpoint_steps}


class ClusterParams(Section):
    num_workers: Annotated[int, Field(ge=1)] | Literal["auto"] | Workers
    cpus_per_worker: int = Field(ge=1)
    address: str = Field(description="local, auto, or the address of a head node")
    backend: Literal["auto", "gloo", "nccl"] = Field(
        description="between workers; auto: nccl on GPUs, else gloo"
    )
    shard: bool = Field(description="FSDP2: each worker keeps a part of the model, for large ones")
    max_failures: int = Field(ge=0)
    storage: Address = Field(
        description="of checkpoints and searches: a folder that all nodes see, or s3://bucket/prefix"
    )
    submit: str | None = Field(description="a head's dashboard: stages are sent there as jobs")
    submit_root: str | None = Field(
        description="folder in which jobs work, seen here and there; null: this one"
    )


class TrackingParams(Section):
    uri: str = Field(description="sqlite:///file.db or the address of an MLflow server")
    experiment: str
    system_metrics: bool


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    loss: LossParams
    train: TrainParams
    tune: TuneParams
    evaluate: EvaluateParams
    predict: PredictParams
    cluster: ClusterParams
    tracking: TrackingParams

    @classmethod
    def load(cls, path: Path | str = "params.yaml") -> "Params":
        """Read and validate a params file.

        Raises:
            OptionError: the file is missing, is not YAML, or has an unknown key or a wrong value;
                every fault is named with what would be right.
        """
        return cls.parse(read_yaml(Path(path)), source=str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, source: str) -> "Params":
        """Validate nested values; `source` names them in errors."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            faults = "\n".join(f"  {explain(fault, cls)}" for fault in error.errors())
            raise OptionError(f"{source} is not valid:\n{faults}") from error

    def dump(self) -> dict[str, Any]:
        """Every value, nested, as JSON takes it."""
        return self.model_dump(mode="json", warnings=False)  # it warns of AUTO

    def override(self, values: Mapping[str, Any]) -> "Params":
        """A validated copy with dotted keys replaced, e.g. {"train.lr": 0.01}."""
        nested = self.dump()
        for key, value in values.items():
            *parents, leaf = key.split(".")
            node = nested
            for depth, parent in enumerate(parents):
                if not isinstance(node.get(parent), dict):
                    raise unknown_key(".".join(parents[: depth + 1]), node)
                node = node[parent]
            if leaf not in node and parents[-1:] != ["options"]:
                raise unknown_key(key, node)
            node[leaf] = value
        return type(self).parse(nested, source="override")

    def search_space(self) -> dict[str, Drawn]:
        """`tune.space` with each `around` as the range that it means.

        Raises:
            OptionError: a key that does not exist, or one around which nothing can be drawn.
        """
        flat = self.flat()
        space: dict[str, Drawn] = {}
        for key, entry in self.tune.space.items():
            if isinstance(entry, Around):
                value = flat.get(key)
                if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                    raise OptionError(
                        f"tune.space {key} is around its value, which is {value!r}: only numbers "
                        "above 0 have surroundings; use choice or loguniform"
                    )
                space[key] = entry.between(value)
            else:
                space[key] = entry
        return space

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted key; lists and free mappings stay whole."""
        return _flatten(self.dump())

    def pick(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values under some dotted keys, sections included."""
        nested = self.dump()
        return {key: reduce(lambda node, part: node[part], key.split("."), nested) for key in keys}

    def digest(self, keys: Iterable[str]) -> str:
        """Hex digest of the values under some dotted keys."""
        text = json.dumps(self.pick(keys), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and key not in {"options", "space"}:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
