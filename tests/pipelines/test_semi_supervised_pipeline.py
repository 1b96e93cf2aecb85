"""Few masks of `streets`: every method through prepare, train, evaluate and predict."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import segcore
from pipelines import train, tune
from pipelines.evaluation.compare import evaluate
from pipelines.params import Params
from pipelines.plan import task_of
from pipelines.planning.timing import measure_step
from pipelines.prediction.run import predict
from pipelines.prepare import prepare
from pipelines.training.build import build_loaders
from segcore.datasets import create_dataset
from segcore.datasets.base import DataSource
from segcore.errors import OptionError
from segcore.machine import Machine

REPOSITORY = Path(__file__).parents[2]
SIZES = {"num_train": 8, "num_val": 2, "num_test": 3, "height": 64, "width": 96}
UNET = {"base_channels": 4, "norm": "batch", "dropout": 0.0}
PARAMS = {
    "data.name": "streets",
    "data.options": SIZES,
    "data.labelled_fraction": 0.5,
    "data.task": "semi_supervised",
    "loss.name": "cross_entropy",
    "loss.class_weights": "none",
    "train.budget_minutes": 1.0,
    "train.epochs": 2,
    "train.max_minutes": None,
    "train.epoch_steps": None,
    "train.refit": False,
    "train.batch_size": 2,
    "train.lr": 0.002,
    "train.precision": "fp32",
    "train.augment.crop": [64, 64],
    "train.progressive": 0.0,
    "train.augment.class_crops": 0.5,
    "train.augment.vflip": 0.0,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.25],
    "train.augment.color": 0.2,
    "train.overlay_epochs": 2,
    "tune.trials": 0,
    "evaluate.promote.resamples": 200,
    "evaluate.precision": "fp32",
    "predict.precision": "fp32",
    "tracking.system_metrics": False,
}
PARAMS_OF_DATA = {key: value for key, value in PARAMS.items() if key.startswith("data.")}
MODELS: dict[str, dict[str, Any]] = {
    "unet": UNET,
    "decouplednet": {
        "backbone": "vgg11_bn", "head_kernel": 1, "fc_channels": 16, "bridge_channels": 16,
    },
    "gan": {"segmenter": "unet", "segmenter_options": UNET, "noise": 8, "base_channels": 4},
}  # fmt: skip

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with raw pictures and shards in which half of the masks are hidden."""
    folder = tmp_path_factory.mktemp("few")
    raw = folder / "data/raw/streets"
    create_dataset("streets", DataSource(raw=raw, options=SIZES)).download()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("SEGCORE_ROOT", raising=False)
        prepare(Params.load(REPOSITORY / "params.yaml").override(PARAMS_OF_DATA))
    return folder


@pytest.fixture
def params(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    for name in ("SEGCORE_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "data").symlink_to(project / "data")
    return Params.load(REPOSITORY / "params.yaml").override(
        {**PARAMS, "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}
    )


def chosen(params: Params, name: str, **more: Any) -> Params:
    """Params of an architecture, where the stages read them."""
    params = params.override({"model.name": name, "model.options": MODELS[name], **more})
    Path("params.yaml").write_text(yaml.safe_dump(params.dump()))
    return params


def test_prepare_hides_masks_and_the_loader_shows_the_images(params: Params) -> None:
    dataset = segcore.open_shards("data/shards/streets")
    assert (len(dataset.split("train")), len(dataset.split("unlabelled"))) == (4, 4)
    train_loader, _ = build_loaders(chosen(params, "unet"), dataset)
    batch = next(iter(train_loader))
    assert set(batch) == {"labelled", "unlabelled"}
    assert set(batch["unlabelled"]["id"]) <= set(dataset.split("unlabelled").ids)
    with pytest.raises(OptionError, match="no option threshold"):
        train.build_task(
            chosen(params, "unet", **{"data.task": None, "train.options.threshold": 0.5}), dataset
        )


def test_a_run_of_one_task_is_not_resumed_by_another(params: Params) -> None:
    supervised = params.override({"data.task": None})
    for stage in (train, tune):
        assert params.digest(stage.IDENTITY) != supervised.digest(stage.IDENTITY)


def test_the_plan_knows_the_task(params: Params) -> None:
    assert task_of(params, ("semantic", "instance")) == "semi_supervised"
    with pytest.raises(OptionError, match=r"data\.task is semi_supervised"):
        task_of(params, ("instance",))


@pytest.mark.parametrize("name", ["unet", "gan", pytest.param("decouplednet", marks=SLOW)])
def test_a_step_of_every_method_is_timed(name: str) -> None:
    what = {
        "model.name": name, "train.batch_size": 2, "train.precision": "fp32", "size": [64, 64],
        "channels": 3, "task": "semi_supervised", "classes": ["a", "b"], "things": [False] * 2,
        "machine": Machine("cpu", "test", 1, 1.0, fast_bf16=False, accelerators=0).to_json(),
    }  # fmt: skip
    assert measure_step(what, MODELS[name]) > 0


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_goes_through_the_stages(params: Params, name: str) -> None:
    """Against a champion that was trained on the same masks alone."""
    import mlflow

    shards, package, report = Path("data/shards/streets"), Path("outputs/candidate"), Path("report")
    dataset = segcore.open_shards(shards)
    supervised = chosen(params, "unet", **{"data.task": None})
    train.main()
    assert evaluate(supervised, shards=shards, package=package, folder=report).verdict == "promoted"

    params = chosen(params, name)
    train.main()
    predictor = segcore.load_package(package)
    assert (predictor.spec.task, predictor.spec.architecture) == ("semantic", name)
    outcome = evaluate(params, shards=shards, package=package, folder=report)
    assert outcome.comparison is not None
    assert "mean IoU" in (report / "index.html").read_text()
    image, _ = dataset.split("test").decode(0)
    mask = predictor(image)[0].mask
    assert mask.shape == (64, 96)
    summary = predict(
        params, images=f"{shards}/test", model=str(package), out=Path("out"), overlays=False
    )
    assert (summary.done, len(summary.failed)) == (3, 0)
    served = mlflow.pyfunc.load_model("models:/segcore-streets@candidate").predict(image[None])
    np.testing.assert_array_equal(served[0], mask)
