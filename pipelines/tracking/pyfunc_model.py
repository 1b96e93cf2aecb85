"""The registered model as MLflow runs it: this file is logged as its code, the package as data.

`mlflow.pyfunc.load_model` executes it in processes that know segcore (shipped beside it by
`code_paths`) but not these pipelines, so it imports nothing else of them.
"""

import warnings
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from segcore.package import load_package
from segcore.tasks import get_kind

warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")


class SegmentationModel(PythonModel):  # type: ignore[misc]
    """uint8 [N, H, W, C] -> what the model's kind of task serves: class maps int64 [N, H, W]."""

    def load_context(self, context: Any) -> None:
        """Load the model package named by the artifact "package"; on a GPU where there is one."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = load_package(context.artifacts["package"], device=device)

    # MLflow derives the signature from annotations of model_input: it has none, ours is explicit.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Predictions of images.

        Args:
            context: MLflow's; unused.
            model_input: uint8 [N, H, W, C], one image [H, W, C], or a list of such of one size.
            params: MLflow's; unused.

        Returns:
            As the signature says: of class maps int64 [N, H, W].
        """
        images = [model_input] if getattr(model_input, "ndim", 4) == 3 else list(model_input)
        return get_kind(self.predictor.spec.task).serve(self.predictor(images))


mlflow.models.set_model(SegmentationModel())
