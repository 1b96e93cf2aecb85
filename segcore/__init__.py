"""segcore: image segmentation from the papers: architectures, losses, metrics, data, training.

Everything public is reached as `segcore.<name>`; a module is imported when its name is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segcore.data.loader import create_loader, create_loaders
    from segcore.data.sample import DatasetInfo, Instance, Sample
    from segcore.data.shards import open_shards
    from segcore.datasets import create_dataset, list_datasets
    from segcore.engine import CheckpointStore, Epoch, fit
    from segcore.errors import SegcoreError
    from segcore.inference.predictor import Prediction, Predictor
    from segcore.losses import create_loss, list_losses
    from segcore.metrics import ConfusionMatrix
    from segcore.models import ModelCard, create_model, list_models, model_card
    from segcore.package import PackageSpec, load_package, package_digest, save_package
    from segcore.tasks import create_task

_HOME = {
    "CheckpointStore": "segcore.engine",
    "ConfusionMatrix": "segcore.metrics",
    "DatasetInfo": "segcore.data.sample",
    "Epoch": "segcore.engine",
    "Instance": "segcore.data.sample",
    "ModelCard": "segcore.models",
    "PackageSpec": "segcore.package",
    "Prediction": "segcore.inference.predictor",
    "Predictor": "segcore.inference.predictor",
    "Sample": "segcore.data.sample",
    "SegcoreError": "segcore.errors",
    "create_dataset": "segcore.datasets",
    "create_loader": "segcore.data.loader",
    "create_loaders": "segcore.data.loader",
    "create_loss": "segcore.losses",
    "create_model": "segcore.models",
    "create_task": "segcore.tasks",
    "fit": "segcore.engine",
    "list_datasets": "segcore.datasets",
    "list_losses": "segcore.losses",
    "list_models": "segcore.models",
    "load_package": "segcore.package",
    "model_card": "segcore.models",
    "open_shards": "segcore.data.shards",
    "package_digest": "segcore.package",
    "save_package": "segcore.package",
}

__all__ = [
    "CheckpointStore",
    "ConfusionMatrix",
    "DatasetInfo",
    "Epoch",
    "Instance",
    "ModelCard",
    "PackageSpec",
    "Prediction",
    "Predictor",
    "Sample",
    "SegcoreError",
    "create_dataset",
    "create_loader",
    "create_loaders",
    "create_loss",
    "create_model",
    "create_task",
    "fit",
    "list_datasets",
    "list_losses",
    "list_models",
    "load_package",
    "model_card",
    "open_shards",
    "package_digest",
    "save_package",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'segcore' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
