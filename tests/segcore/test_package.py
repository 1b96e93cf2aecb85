"""Model packages: what is saved comes back, and what is broken is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import segcore
from segcore.errors import OptionError, PackageError
from segcore.package import PackageSpec, load_package, package_digest, read_spec, save_package

OPTIONS = {"base_channels": 4, "norm": "batch"}


def make_spec(**changes: object) -> PackageSpec:
    values: dict[str, object] = {
        "architecture": "unet",
        "options": OPTIONS,
        "num_classes": 3,
        "classes": ("sky", "road", "Fußgänger"),
        "palette": ((1, 2, 3), (40, 50, 60), (200, 0, 9)),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
        "input_size": (48, 64),
        "things": (False, False, True),
        "dataset_name": "toy",
        "dataset_digest": "d" * 64,
        "metrics": {"val/miou": 0.5, "val/iou/road": float("nan")},
        "extra": {"git_commit": "c" * 40},
    }
    return PackageSpec(**{**values, **changes})  # type: ignore[arg-type]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return segcore.create_model("unet", num_classes=3, **OPTIONS).eval()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return save_package(tmp_path / "candidate", make_model(), make_spec())


def test_round_trip_keeps_weights_and_spec(package: Path) -> None:
    predictor = load_package(package)
    x = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(predictor.model(x)["out"], make_model()(x)["out"])
    assert predictor.digest == package_digest(package)
    spec = read_spec(package)
    assert spec == predictor.spec
    assert spec.metrics == {"val/miou": 0.5, "val/iou/road": None}
    assert spec.versions["torch"] == torch.__version__
    same = make_spec(versions=spec.versions, metrics=spec.metrics)
    assert spec == same


def test_same_model_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    other = save_package(tmp_path / "other", make_model(), make_spec())
    assert package_digest(other) == package_digest(package)
    for name in ("model.safetensors", "model.json"):
        assert (other / name).read_bytes() == (package / name).read_bytes()


def test_state_dict_and_wrapped_models_save_alike(package: Path, tmp_path: Path) -> None:
    digest = package_digest(package)
    model = make_model()
    for name, given in {"state": model.state_dict(), "compiled": torch.compile(model)}.items():
        saved = save_package(tmp_path / name, given, make_spec())  # type: ignore[arg-type]
        assert package_digest(saved) == digest


def test_shared_tensors_are_saved(tmp_path: Path) -> None:
    model = make_model()
    state = dict(model.state_dict())
    name = next(key for key, value in state.items() if value.ndim == 1)
    state["copy"] = state[name]
    path = save_package(tmp_path / "shared", state, make_spec())
    with pytest.raises(PackageError, match="copy"):
        load_package(path)


def test_replacing_leaves_no_trace_of_the_older_package(package: Path) -> None:
    save_package(package, make_model(), make_spec(), overlay=Image.new("RGB", (40, 30)))
    assert sorted(path.name for path in package.iterdir()) == [
        "README.md",
        "model.json",
        "model.safetensors",
        "overlay.png",
    ]
    save_package(package, make_model(), make_spec())
    assert not (package / "overlay.png").exists()
    assert [path.name for path in package.parent.iterdir()] == ["candidate"]


def test_failed_save_keeps_the_older_package(package: Path) -> None:
    digest = package_digest(package)
    with pytest.raises(TypeError):
        save_package(package, make_model(), make_spec(extra={"bad": object()}))
    assert package_digest(package) == digest
    assert [path.name for path in package.parent.iterdir()] == ["candidate"]


def test_model_card_shows_picture_use_and_classes(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), (9, 9, 9))
    path = save_package(tmp_path / "p", make_model(), make_spec(), overlay=picture)
    card = (path / "README.md").read_text(encoding="utf-8")
    assert "![predictions](overlay.png)" in card
    assert "segcore.load_package" in card
    assert "| 2 | Fußgänger | 200, 0, 9 |" in card
    assert "| val/miou | 0.5000 |" in card
    assert "nan" not in card


def cut(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def edit(**changes: object) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        document = json.loads((path / "model.json").read_text())
        (path / "model.json").write_text(json.dumps({**document, **changes}))

    return apply


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, r"model\.safetensors has sha256 .* truncated"),
        (lambda p: (p / "model.safetensors").unlink(), r"model\.safetensors cannot be read"),
        (lambda p: (p / "model.json").unlink(), r"model\.json cannot be read"),
        (lambda p: (p / "model.json").write_text('{"form'), r"model\.json is not JSON"),
        (lambda p: (p / "model.json").write_text("[]"), r"model\.json has format 'list'"),
        (edit(format=99), r"model\.json has format 99"),
        (edit(num_classes=4), r"model\.json is not a package description .*classes"),
        (edit(surprise=1), r"model\.json is not a package description .*surprise"),
        (edit(architecture="unit"), "unknown model 'unit'; did you mean 'unet'"),
        (edit(options={"depht": 3}), "depht"),
        (edit(options={**OPTIONS, "base_channels": 8}), r"model\.safetensors does not fit unet"),
    ],
)
def test_broken_package_names_the_file(
    package: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(package)
    with pytest.raises(PackageError, match=message):
        load_package(package)


def test_garbage_weights_with_a_matching_digest_are_refused(package: Path) -> None:
    import hashlib

    (package / "model.safetensors").write_bytes(b"garbage" * 10)
    edit(weights_sha256=hashlib.sha256(b"garbage" * 10).hexdigest())(package)
    with pytest.raises(PackageError, match="not a safetensors file"):
        load_package(package)


def test_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"nowhere/model\.json cannot be read"):
        load_package(tmp_path / "nowhere")


def test_digest_follows_weights_and_description_but_not_the_card(package: Path) -> None:
    digest = package_digest(package)
    (package / "README.md").write_text("other words")
    assert package_digest(package) == digest
    edit(dataset_name="other")(package)
    assert package_digest(package) != digest


@pytest.mark.parametrize(
    "changes", [{"classes": ("a",)}, {"palette": ()}, {"mean": (0.5,)}, {"things": (True,)}]
)
def test_spec_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=rf"PackageSpec\.{next(iter(changes))} has \d"):
        make_spec(**changes)


def test_masks_come_out_at_the_image_size_whatever_the_input_size(package: Path) -> None:
    image = np.zeros((30, 91, 3), np.uint8)
    assert load_package(package)(image)[0].mask.shape == (30, 91)
