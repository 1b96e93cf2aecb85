"""params.yaml: typed, frozen, and clear about every mistake."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipelines.params import Params, Section
from pipelines.params.options import COMMON_OPTIONS
from pipelines.tracking.names import train_name
from segcore.errors import OptionError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params() -> Params:
    return Params.load(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train.lrr": 1.0}, ["train.lrr", "did you mean train.lr?"]),
        ({"trian.lr": 1.0}, ["trian", "did you mean train?", "tracking"]),
        ({"train.lr": "fast"}, ["train.lr", "'fast'", "number"]),
        ({"train.optimizer": "adamv"}, ["'adamv'", "'sgd'", "did you mean adam"]),
        ({"train.batch_size": 0}, ["train.batch_size", "greater than or equal to 1"]),
        ({"train.augment.hflip": 1.5}, ["train.augment.hflip", "1.5"]),
        ({"data.size": [8, 300]}, ["data.size", "32"]),
        ({"cluster.num_workers": "many"}, ["cluster.num_workers", "'auto'"]),
        ({"train.max_minutes": -1}, ["train.max_minutes", "greater than 0"]),
        ({"data.task": "instanse"}, ["data.task", "did you mean 'instance'", "panoptic, semantic"]),
    ],
)
def test_each_mistake_names_key_value_and_way_out(
    params: Params, values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(OptionError) as caught:
        params.override(values)
    for word in words:
        assert word in str(caught.value)


def test_unknown_key_in_file_names_the_nearest(tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["train"]["batchsize"] = values["train"].pop("batch_size")
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(OptionError, match=r"did you mean train\.batch_size") as caught:
        Params.load(file)
    assert "missing key train.batch_size" in str(caught.value)


def test_yaml_exponent_without_a_point_is_a_number(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("decay: 0.01", "decay: 1e-2")
    assert "decay: 1e-2" in text
    (tmp_path / "params.yaml").write_text(text)
    assert Params.load(tmp_path / "params.yaml").train.weight_decay == 0.01


def test_missing_file_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="top of the repository"):
        Params.load(tmp_path / "params.yaml")


def test_override_reaches_options_of_the_model(params: Params) -> None:
    changed = params.override({"model.options.base_channels": 16, "train.lr": 0.5})
    assert changed.model.options.items() >= {"base_channels": 16}.items()
    assert changed.train.lr == 0.5
    assert params.train.lr != 0.5


@pytest.mark.parametrize("override", ["model.options.norm=batch", "model.options={norm: batch}"])
def test_dvc_sets_common_options_of_models_and_null_is_the_architecture_s_own(
    tmp_path: Path, override: str
) -> None:
    from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` calls

    file = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", file)
    plain = Params.load(file)
    assert set(plain.model.options.values()) == {"auto"}
    apply_overrides(file, ["model.name=unet", override])
    changed = Params.load(file)
    assert changed.model.options["norm"] == "batch"
    alone = changed.override(
        {f"model.options.{name}": None for name in plain.model.options if name != "norm"}
    )
    assert alone.model.options == {"norm": "batch"}
    assert alone.digest(["model"]) == plain.override(
        {"model.name": "unet", "model.options": {"norm": "batch"}}
    ).digest(["model"])
    assert alone.override({"model.options.norm": None}).model.options == {}
    # To `dilated`, null is a value: the front end alone.
    front = changed.override({"model.options": {"context": None, "dropout": None}})
    assert front.model.options == {"context": None}


def test_common_options_of_models_are_those_in_the_file() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())["model"]["options"]
    assert set(values) == COMMON_OPTIONS
    assert set(values.values()) == {"auto"}


def test_digest_changes_with_the_picked_keys_only(params: Params) -> None:
    changed = params.override({"train.lr": 0.123})
    assert changed.digest(["train"]) != params.digest(["train"])
    assert changed.digest(["data", "model"]) == params.digest(["data", "model"])


def test_no_field_has_a_default() -> None:
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.is_required(), f"{model.__name__}.{name} has a default in params.py"
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Section):
                check(inner)

    check(Params)


@pytest.mark.parametrize("stage", ["download", "prepare", "tune", "train", "evaluate", "predict"])
def test_wrong_key_is_refused_before_heavy_imports(stage: str, tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["train"]["learning_rate"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"pipelines.{stage}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "train.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "ray", "mlflow", "torchvision", "pyarrow.parquet"}


def test_a_model_with_losses_of_its_own_is_named_without_one() -> None:
    values = {"model.name": "mask_rcnn", "loss.name": "own", "train.max_minutes": 8.0}
    params = Params.load(ROOT / "params.yaml").override(values)
    assert train_name(params) == "mask_rcnn 8 min"
    assert train_name(params.override({"loss.name": "focal"})) == "mask_rcnn focal 8 min"
