"""Every registered architecture trains, is packaged and predicts through the same stage."""

import shutil

import pytest

import segcore
from pipelines import train
from pipelines.tracking import registry
from segcore.models import model_card

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NAMES = [name for name in segcore.list_models("semantic") if model_card(name).input_dims == 2]


@pytest.mark.parametrize("name", NAMES)
def test_stage_trains_by_name_alone(workspace, name: str) -> None:
    values = {"model.name": name, "model.options": {}, "train.epochs": 1, "train.lr": 1e-4}
    params = workspace.write(**values)
    train.main()
    package = workspace.root / "outputs/candidate"
    predictor = segcore.load_package(package)
    image, _ = segcore.open_shards(workspace.shards).split("val").decode(0)
    assert predictor(image)[0].mask.shape == image.shape[:2]
    version = registry.Registry(params).get("segcore-painted", "candidate")
    assert version is not None
    assert version.package_digest == segcore.package_digest(package)
    assert predictor.spec.architecture == name
    shutil.rmtree(workspace.root / "outputs")  # half a gigabyte of weights for a VGG
