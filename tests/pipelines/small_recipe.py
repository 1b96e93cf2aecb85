"""A training of seconds, with nothing left to the plan."""

from typing import Any

RECIPE: dict[str, Any] = {
    "model.name": "unet",
    "model.options": {"base_channels": 4, "norm": "batch", "dropout": 0.0},
    "loss.name": "cross_entropy",
    "loss.class_weights": "none",
    "train.budget_minutes": 1.0,
    "train.epochs": 1,
    "train.max_minutes": None,
    "train.epoch_steps": 40,
    "train.refit": True,
    "train.batch_size": 4,
    "train.progressive": 0.0,
    "train.lr": 0.02,
    "train.precision": "fp32",
    "train.augment.crop": [48, 64],
    "train.augment.class_crops": 0.0,
    "train.augment.vflip": 0.0,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.0],
    "train.augment.color": 0.0,
    "tune.trials": 0,
}
