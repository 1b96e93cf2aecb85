"""Predictions in tiles equal those of the whole image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from segcore.errors import DataError, OptionError
from segcore.inference import tiling
from segcore.inference.images import count_megapixels, to_array
from segcore.inference.memory import bytes_per_pixel
from segcore.inference.predictor import Predictor
from segcore.inference.spec import PackageSpec
from segcore.models import create_model
from segcore.tasks.semantic import SemanticTask
from segcore.tasks.semantic import task as semantic

MIB = 1 / 1024


class Context(nn.Module):
    """Random convolutions that see 9 pixels far, one of them at half the resolution."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(8, classes, 5, padding=2),
        )
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = x.shape[-2:]
        self.sizes.append((height, width))
        padded = nn.functional.pad(x, (0, width % 2, 0, height % 2))
        return {"out": self.layers(padded)[..., :height, :width]}


def spec(**options: object) -> PackageSpec:
    return PackageSpec(
        architecture="context",
        num_classes=3,
        classes=("a", "b", "c"),
        palette=((0, 0, 0), (255, 0, 0), (0, 0, 255)),
        mean=(0.4, 0.3, 0.5),
        std=(0.2, 0.3, 0.25),
        **options,  # type: ignore[arg-type]
    )


def noise(height: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(height * width)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(coarse, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)


sides = st.integers(4, 9).map(lambda count: count * tiling.ALIGN)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 1500), tile=sides)
def test_spans_cover_every_pixel_with_positive_weights(length: int, tile: int) -> None:
    overlap = tiling.overlap_of(tile)
    total = torch.zeros(length)
    for span in tiling.spans(length, tile, overlap):
        assert span.start % tiling.ALIGN == 0
        assert 0 < span.stop - span.start <= tile
        weights = span.weights(tile)
        assert (weights > 0).all()
        total[span.first : span.last] += weights
    assert (total > 0).all()


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700), value=st.floats(-9, 9), tile=sides)
def test_blending_a_constant_gives_the_constant(
    height: int, width: int, value: float, tile: int
) -> None:
    def run(top: int, bottom: int, left: int, right: int) -> Tensor:
        return torch.full((2, bottom - top, right - left), value)

    rows = 0
    for top, scores in tiling.blend(run, (height, width), tile=tile):
        assert top == rows
        assert scores.shape[::2] == (2, width)
        torch.testing.assert_close(scores, torch.full_like(scores, value))
        rows += scores.shape[1]
    assert rows == height


@pytest.mark.parametrize("size", [(700, 450), (257, 1000), (40, 900)])
def test_labels_of_tiles_are_those_of_the_whole_image(size: tuple[int, int]) -> None:
    image = noise(*size)
    whole = Predictor(Context(), spec())(image, confidence=True)[0]
    tiled = Predictor(Context(), spec(), max_memory_gib=2 * MIB)
    found = tiled(image, confidence=True)[0]
    assert max(h for h, _ in tiled.model.sizes[1:]) <= tiling.MIN_TILE
    assert len(tiled.model.sizes) > 2
    np.testing.assert_array_equal(found.mask, whole.mask)
    assert found.confidence is not None
    assert whole.confidence is not None
    np.testing.assert_allclose(found.confidence, whole.confidence, atol=1e-4)
    assert found.probabilities is None


def test_probabilities_of_all_classes_are_kept_whole_and_in_tiles() -> None:
    image = noise(300, 800)
    whole = Predictor(Context(), spec(), probabilities=True)
    tiled = Predictor(Context(), spec(), probabilities=True, max_memory_gib=2 * MIB)
    for predictor in (whole, tiled):
        found = predictor(image)[0].probabilities
        assert found is not None
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, predictor.probabilities(image).half())
    assert max(height for height, _ in tiled.model.sizes[1:]) <= tiling.MIN_TILE


def test_a_trunk_of_stride_32_meets_its_grid_in_every_tile() -> None:
    torch.manual_seed(0)
    model = create_model("linknet", num_classes=3).eval()
    image = noise(640, 900)
    whole = Predictor(model, spec())(image)[0].mask
    tiled = Predictor(model, spec(), max_memory_gib=60 * MIB)(image)[0].mask
    assert np.mean(whole == tiled) > 0.95  # random weights: many near ties


def test_training_size_is_enlarged_in_parts() -> None:
    image = noise(600, 500)
    whole = Predictor(Context(), spec(input_size=(96, 80)))(image)[0].mask
    tiled = Predictor(Context(), spec(input_size=(96, 80)), max_memory_gib=2 * MIB)
    np.testing.assert_array_equal(tiled(image)[0].mask, whole)
    assert tiled.model.sizes == [(96, 80)]


def test_refinement_sees_a_tile_and_its_probabilities() -> None:
    def swap(image: Tensor, probabilities: Tensor) -> Tensor:
        assert image.shape[:2] == probabilities.shape[1:]
        assert max(image.shape) <= tiling.MIN_TILE
        return probabilities[[1, 0, 2]]

    image = noise(300, 300)
    plain = Predictor(Context(), spec())(image)[0].mask
    refined = Predictor(Context(), spec(), crf=swap, max_memory_gib=2 * MIB)(image)[0].mask
    assert np.mean(refined == np.array([1, 0, 2])[plain]) > 0.999


def test_small_memory_makes_small_batches() -> None:
    predictor = Predictor(Context(), spec(), max_memory_gib=4 * MIB)
    predictor([noise(64, 64)] * 8, batch_size=8)
    assert len(predictor.model.sizes) > 2


def test_memory_is_measured_by_what_lives_at_a_time() -> None:
    chain = nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(6)]).eval()
    measured = bytes_per_pixel(chain, torch.zeros(1, 4, 64, 64))
    assert 2 * 2 * 16 <= measured <= 2 * 4 * 16


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_is_of_the_model_alone(precision: str) -> None:
    model = Context()
    predictor = Predictor(model, spec(), precision=precision)
    image = noise(64, 80)
    assert predictor.logits([image]).dtype == torch.float32
    assert model.layers[0].weight.dtype == torch.float32
    expected = Predictor(model, spec())(image)[0].mask
    assert np.mean(predictor(image)[0].mask == expected) > 0.95


def test_unknown_precision_names_the_known() -> None:
    with pytest.raises(OptionError, match="'int8': give fp32, bf16, fp16"):
        Predictor(Context(), spec(), precision="int8")


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_thin_images(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "thin.png"
    Image.fromarray(noise(*size)).save(path)
    for gib in (None, 1 * MIB):
        predictor = Predictor(Context(), spec(), max_memory_gib=gib)
        assert predictor(path)[0].mask.shape == size


def test_megapixels_are_read_from_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wide.png"
    Image.new("L", (2000, 1000)).save(path)
    whole = path.read_bytes()
    assert count_megapixels(whole) == 2.0
    assert count_megapixels(b"words") == 0.0
    path.write_bytes(whole[:60])  # a header and nothing to decode
    with pytest.raises(DataError, match=r"2000 x 1000 pixels are 2 megapixels, the limit is 1\.5"):
        to_array(path, max_megapixels=1.5)
    # Pillow's own guard would warn, or refuse, at its own limits.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert to_array(whole, 1).shape == (1000, 2000, 1)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_validation_of_a_huge_image_runs_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Context().eval()
    task = SemanticTask(
        num_classes=3,
        loss=nn.functional.cross_entropy,
        ignore_index=255,
        mean=(0.4, 0.3, 0.5),
        std=(0.2, 0.3, 0.25),
    )
    images = torch.from_numpy(np.stack([noise(400, 300)] * 2)).permute(0, 3, 1, 2)
    with torch.no_grad():
        whole = task.predict(model, {"image": images})
        monkeypatch.setattr(semantic, "WHOLE_SCORES", 1000)
        monkeypatch.setattr(semantic, "VALIDATION_TILE", 256)
        tiled = task.predict(model, {"image": images})
    assert len(model.sizes) > 2
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-4)
