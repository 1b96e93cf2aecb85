"""What runs are called in MLflow: by what they are; their stage is in the tag `dvc_stage`."""

from collections.abc import Mapping
from typing import Any

from pipelines.params import Params
from pipelines.params.space import Choice

LONGEST_NAME = 250  # characters that MLflow's database takes


def train_name(params: Params) -> str:
    """Model, loss and length: `linknet dice_ce 12 epochs`, `unet dice + focal 8 min`."""
    train = params.train
    timed = train.max_minutes is not None
    length = f"{train.max_minutes:g} min" if timed else _count(train.epochs, "epoch")
    parts = (params.model.name, params.loss.label, length)
    return _short(" ".join(part for part in parts if part))


def tune_name(params: Params) -> str:
    """Trials and the models that they try: `search of 3 trials: linknet`."""
    models = params.tune.space.get("model.name")
    names = models.values if isinstance(models, Choice) else [params.model.name]
    return _short(f"search of {_count(params.tune.trials, 'trial')}: {', '.join(map(str, names))}")


def trial_name(values: Mapping[str, Any]) -> str:
    """A trial's values: `loss.name=dice_ce train.lr=0.00213`."""
    return _short(
        " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
    )


def evaluate_name(architecture: str, version: str) -> str:
    """The version that is scored: `evaluate linknet v3`."""
    return f"evaluate {architecture} v{version}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
