"""Exported files compute what torch computes, at any size, and say what they are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import segcore
from segcore.errors import ExportError, OptionError, UnknownNameError
from segcore.export import ENGINES, FORMATS, export_package, load_exported
from segcore.export.check import LEAST_SHARE, SIZES, compare, picture
from segcore.export.engines import open_graph
from segcore.export.facts import Facts
from segcore.export.files import quiet
from segcore.export.pooling import BinAverages
from segcore.export.trace import trace
from segcore.inference.network import Normalised
from segcore.models import model_card
from segcore.models.blocks import pad_to_multiple, reflect_pad
from segcore.package import PackageSpec, load_package, save_package
from segcore.tasks import get_kind

CLASSES = ("sky", "road", "Fußgänger")
PALETTE = ((1, 2, 3), (40, 50, 60), (200, 0, 9))
SHRUNK = {"unet": {"base_channels": 8}}


def make_spec(architecture: str, **changes: object) -> PackageSpec:
    values: dict[str, object] = {
        "architecture": architecture,
        "num_classes": 3,
        "classes": CLASSES,
        "palette": PALETTE,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
    }
    return PackageSpec(**{**values, **changes})  # type: ignore[arg-type]


def make_package(path: Path, architecture: str, **options: object) -> Path:
    torch.manual_seed(0)
    model = segcore.create_model(architecture, num_classes=3, **options)
    return save_package(path, model, make_spec(architecture, options=options))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "unet_small"
    return make_package(folder, "unet_small", base_channels=4)


@pytest.fixture(scope="module")
def files(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    made = {}
    for name in FORMATS:
        file, agreement = export_package(package, folder / "model", to=name)
        assert agreement is not None
        assert agreement.labels >= LEAST_SHARE
        assert agreement.difference < 1e-5
        made[name] = file
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.bin",
        "model.onnx",
        "model.pt2",
        "model.xml",
    ]
    return made


@pytest.mark.parametrize(
    ("form", "engine"),
    [("onnx", None), ("onnx", "openvino"), ("openvino", None), ("torch-export", None)],
)
def test_predictor_of_a_file_labels_as_that_of_the_package(
    package: Path, files: dict[str, Path], form: str, engine: str | None
) -> None:
    sizes = ((1, 1), (30, 91), (64, 64), (101, 57), (64, 64))
    images = [picture((1, *size), 3, seed) for seed, size in enumerate(sizes)]
    pixels = [image[0].permute(1, 2, 0).numpy() for image in images]
    expected = load_package(package)(pixels)
    predictor = load_exported(files[form], engine=engine)
    found = predictor(pixels, confidence=True)  # type: ignore[call-arg]
    for one, other in zip(expected, found, strict=True):
        assert np.mean(one.mask == other.mask) >= LEAST_SHARE
        assert other.confidence is not None
    assert predictor.digest == segcore.package_digest(package)
    assert predictor.spec == load_package(package).spec


def test_files_name_classes_and_colours_without_segcore(files: dict[str, Path]) -> None:
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(texts["classes"])) == CLASSES
    assert json.loads(texts["palette"])[2] == [200, 0, 9]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_outputs()[0].name == "logits"
    model = openvino.Core().read_model(files["openvino"])
    assert tuple(json.loads(model.get_rt_info("segcore_classes").astype(str))) == CLASSES


@pytest.mark.parametrize("engine", ["onnxruntime", "torch-export"])
def test_engines_refuse_precisions_that_they_do_not_compute(
    files: dict[str, Path], engine: str
) -> None:
    file = next(path for path in files.values() if path.suffix in ENGINES[engine][0])
    with pytest.raises(OptionError, match=f"{engine} computes exported files at fp32, not bf16"):
        load_exported(file, precision="bf16")


def test_openvino_runs_at_half_precision(package: Path, files: dict[str, Path]) -> None:
    pixels = picture((1, 64, 96), 3, 0)[0].permute(1, 2, 0).numpy()
    half = load_exported(files["openvino"], precision="bf16")(pixels)[0].mask
    assert np.mean(half == load_package(package)(pixels)[0].mask) > 0.9


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("watershed", {}, "watershed cannot be exported: instance segmentation finds a number"),
        ("unet", {"padding": "valid", "base_channels": 4}, "padding='valid'.* cannot be exported"),
        ("unet3d", {}, r"unet3d cannot be exported: images have shape .*give \[N, C, D, H, W\]"),
    ],
)
def test_what_cannot_be_exported_is_named_with_the_reason(
    name: str, options: dict[str, object], message: str
) -> None:
    model = segcore.create_model(name, num_classes=3, **options)
    spec = make_spec(name, options=options)
    with pytest.raises(ExportError, match=message):
        trace(get_kind(model_card(name).task).graph(model, spec), spec)


def test_unknown_names_list_the_known(package: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'onx'; did you mean 'onnx'"):
        export_package(package, tmp_path / "m", to="onx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UnknownNameError, match="unknown engine 'onnx'"):
        load_exported(tmp_path / "model.onnx", engine="onnx")
    with pytest.raises(OptionError, match=r"openvino runs \.xml and \.onnx files, not m\.pt2"):
        load_exported(tmp_path / "m.pt2", engine="openvino")
    with pytest.raises(OptionError, match=r"model\.txt is no exported file"):
        load_exported(tmp_path / "model.txt")
    with pytest.raises(ExportError, match=r"nothing\.onnx does not exist"):
        load_exported(tmp_path / "nothing.onnx")
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(ExportError, match=f"cannot be run by {engine}"):
            load_exported(tmp_path / "model.onnx", engine=engine)


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not say what its classes are"):
        Facts.read(None, tmp_path / "theirs.onnx")


def test_a_missing_runtime_is_named_with_what_installs_it(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"needs onnxruntime.*pip install 'segcore\[export\]'"):
        load_exported(files["onnx"])


def test_other_labels_than_torchs_are_an_error() -> None:
    spec = make_spec("conv_stack")
    graphs = []
    for seed in range(2):
        torch.manual_seed(seed)
        graphs.append(Normalised(segcore.create_model("conv_stack", num_classes=3, width=4), spec))
    with pytest.raises(ExportError, match="conv_stack was written, but does not compute"):
        compare(graphs[0], graphs[1], spec)
    assert compare(graphs[0], graphs[0], spec).labels == 1


def test_a_graph_of_one_size_is_an_error() -> None:
    class Float(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float()

    class OneSize(Float):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if tuple(image.shape[2:]) != SIZES[0][1:]:
                raise RuntimeError("only one size")
            return super().forward(image)

    spec = make_spec("conv_stack")
    with pytest.raises(ExportError, match=r"does not run on \(3, 3, 32, 33\): only one size"):
        compare(Float(), OneSize(), spec)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 7), st.integers(1, 7))
def test_bin_averages_are_adaptive_pooling(
    height: int, width: int, rows: int, columns: int
) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    expected = nn.AdaptiveAvgPool2d((rows, columns))(x)
    torch.testing.assert_close(BinAverages((rows, columns))(x), expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 50), st.integers(2, 50), st.integers(0, 190))
def test_reflect_pad_mirrors_as_often_as_needed(height: int, width: int, margin: int) -> None:
    x = torch.arange(height * width).view(1, 1, height, width)
    expected = np.pad(x[0, 0].numpy(), margin, mode="reflect")
    np.testing.assert_array_equal(reflect_pad(x, margin)[0, 0].numpy(), expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 33), st.integers(0, 70))
def test_padding_reaches_the_least_multiple(
    height: int, width: int, multiple: int, minimum: int
) -> None:
    padded = pad_to_multiple(torch.ones(1, 1, height, width), multiple, minimum=minimum)
    assert padded.sum() == height * width
    for side, length in zip((height, width), padded.shape[2:], strict=True):
        assert length % multiple == 0
        assert length >= max(side, minimum)
        assert length - multiple < max(side, minimum)


def architectures() -> list[str]:
    names = [name for name in segcore.list_models("semantic") if name != "unet3d"]
    return [*names, "torchvision:lraspp_mobilenet_v3_large", "torchvision:deeplabv3_resnet50"]


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_every_semantic_architecture_runs_in_every_engine(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = SHRUNK.get(name, {})
    model = segcore.create_model(name, num_classes=3, **options).eval()
    for parameter in model.parameters():
        if not parameter.detach().any():  # scores that start at zero have no largest class
            nn.init.normal_(parameter, std=0.02)
    spec = make_spec(name, options=options)
    graph = Normalised(model, spec)
    with quiet():
        program = trace(graph, spec)
        for form in FORMATS.values():
            form.write(program, Facts(spec, "", 1.0), tmp_path)
            agreement = compare(
                graph, open_graph(tmp_path / f"model{form.suffix}", form.engine), spec
            )
            assert agreement.labels >= LEAST_SHARE
