"""A model package as MLflow keeps it: a pyfunc model of segcore's own source, without a pickle."""

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import segcore

MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIRED = ("numpy", "pillow", "pyarrow", "safetensors", "scipy", "torch", "torchvision")
EXAMPLE_SIZE = 64


def log_model(package: Path, run_id: str) -> Any:
    """Log a package as a pyfunc model whose code is segcore's own source, without a pickle."""
    import mlflow
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from segcore.package import read_spec
    from segcore.tasks import get_kind

    spec = read_spec(package)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, spec.in_channels))]),
        outputs=Schema(
            [
                TensorSpec(np.dtype(tensor.dtype), tensor.shape, tensor.name or None)
                for tensor in get_kind(spec.task).served
            ]
        ),
    )
    # The signature is given; MLflow warns that it would rather read it off type hints.
    with warnings.catch_warnings(record=True):
        return Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=os.fspath(MODEL_CODE),
            artifacts={"package": os.fspath(package)},
            code_paths=[os.fspath(Path(segcore.__file__).parent)],
            signature=signature,
            input_example=np.zeros((1, EXAMPLE_SIZE, EXAMPLE_SIZE, spec.in_channels), np.uint8),
            pip_requirements=_requirements(),
        )


def _requirements() -> list[str]:
    """What the model runs on, without the local build tags that no index has."""
    pins = []
    for name in REQUIRED:
        try:
            pins.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            pins.append(name)
    return pins
