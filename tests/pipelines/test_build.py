"""What params describe reaches the parts that are built from them."""

from pathlib import Path

import segcore
from pipelines.params import Params
from pipelines.training.build import loader_options

ROOT = Path(__file__).parents[2]
SETTLED = {
    "train.batch_size": 4,
    "train.augment.crop": None,
    "train.progressive": 0.0,
    "train.augment.class_crops": 0.0,
    "train.augment.vflip": 0.0,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.0],
    "train.augment.color": 0.2,
}


def options(**values: object) -> dict[str, object]:
    params = Params.load(ROOT / "params.yaml").override({**SETTLED, **values})
    return loader_options(params)


def test_epochs_have_the_planned_length(painted_shards: Path) -> None:
    dataset = segcore.open_shards(painted_shards)
    settings = options(**{"train.epoch_steps": 7, "train.refit": False})
    assert len(segcore.create_loaders(dataset, **settings)[0]) == 7


def test_refit_trains_on_the_images_of_validation_too(painted_shards: Path) -> None:
    dataset = segcore.open_shards(painted_shards)
    splits = {name: set(dataset.split(name).ids) for name in ("train", "val")}
    for refit, expected in ((False, splits["train"]), (True, splits["train"] | splits["val"])):
        settings = options(**{"train.epoch_steps": None, "train.refit": refit})
        loader, _ = segcore.create_loaders(dataset, **{**settings, "batch_size": 1})
        assert {name for batch in loader for name in batch["id"]} == expected
