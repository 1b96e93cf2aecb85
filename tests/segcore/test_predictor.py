"""The predictor on every kind and size of image."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segcore.errors import DataError, ShapeError
from segcore.inference.images import resize, to_array
from segcore.inference.predictor import Predictor
from segcore.inference.spec import PackageSpec

COLORS = np.array([(20, 20, 20), (220, 40, 40), (40, 60, 220)], np.uint8)
MEAN, STD = (0.4, 0.3, 0.5), (0.2, 0.3, 0.25)


class NearestColor(nn.Module):
    """Classifies a pixel by the nearest of `COLORS`: an exact network without training."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        scaled = torch.from_numpy(COLORS[:, :in_channels] / 255.0).float()
        centers = (scaled - torch.tensor(MEAN[:in_channels])) / torch.tensor(STD[:in_channels])
        self.weight = torch.tensor(STD[:in_channels]) ** 2
        self.linear = nn.Conv2d(in_channels, 3, 1)
        with torch.no_grad():
            self.linear.weight.copy_((2 * centers * self.weight)[:, :, None, None])
            self.linear.bias.copy_(-(centers**2 * self.weight).sum(1))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.shapes.append(tuple(x.shape))
        if min(x.shape[-2:]) < 32:
            raise ShapeError("too small")
        return {"out": self.linear(x) * 50}


def make(in_channels: int = 3, input_size: tuple[int, int] | None = None) -> Predictor:
    spec = PackageSpec(
        architecture="nearest_color",
        num_classes=3,
        in_channels=in_channels,
        classes=("dark", "red", "blue"),
        palette=((0, 0, 0), (255, 0, 0), (0, 0, 255)),
        mean=MEAN[:in_channels],
        std=STD[:in_channels],
        input_size=input_size,
    )
    return Predictor(NearestColor(in_channels), spec)


def truth(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 3, (height // 8 + 1, width // 8 + 1))
    return np.kron(coarse, np.ones((8, 8)))[:height, :width].astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 5))
def test_any_size_at_native_resolution_is_exact(height: int, width: int, count: int) -> None:
    masks = [truth(height, width, seed) for seed in range(count)]
    found = make()([COLORS[mask] for mask in masks], batch_size=2)
    for mask, prediction in zip(masks, found, strict=True):
        np.testing.assert_array_equal(prediction.mask, mask)
        assert (prediction.height, prediction.width) == (height, width)
        assert prediction.mask.dtype == np.uint8


def test_unlike_sizes_keep_their_order_and_equal_ones_share_a_batch() -> None:
    predictor = make()
    sizes = [(40, 50), (64, 33), (40, 50), (40, 50), (64, 33)]
    found = predictor([COLORS[truth(*size, seed=i)] for i, size in enumerate(sizes)], batch_size=2)
    for i, size in enumerate(sizes):
        np.testing.assert_array_equal(found[i].mask, truth(*size, seed=i))
    shapes = predictor.model.shapes
    assert [shape[0] for shape in shapes] == [2, 1, 2]


def test_large_images_run_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segcore.inference.predictor.MAX_BATCH_LOGITS", 3 * 40 * 40 * 2)
    predictor = make()
    predictor([COLORS[truth(40, 40)]] * 5, batch_size=8)
    assert [shape[0] for shape in predictor.model.shapes] == [2, 2, 1]


def test_training_size_is_used_inside_and_undone_outside() -> None:
    predictor = make(input_size=(48, 64))
    mask = np.zeros((120, 100), np.uint8)
    mask[40:100, 20:70] = 1
    found = predictor(COLORS[mask])[0].mask
    assert predictor.model.shapes == [(1, 3, 48, 64)]
    assert found.shape == (120, 100)
    assert np.mean(found == mask) > 0.97


def test_kinds_of_one_image_agree(tmp_path: Path) -> None:
    mask = truth(40, 56)
    pixels = COLORS[mask]
    picture = Image.fromarray(pixels)
    path = tmp_path / "image.png"
    picture.save(path)
    raw = io.BytesIO()
    np.save(raw, pixels)
    kinds = [
        pixels,
        pixels.astype(np.uint16) * 257,
        pixels.astype(np.int64),
        np.dstack([pixels, np.full(mask.shape, 7, np.uint8)]),
        picture,
        picture.convert("RGBA"),
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=8),
        picture.convert("CMYK"),
        path,
        str(path),
        path.read_bytes(),
        raw.getvalue(),
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1) / 255,
    ]
    for prediction in make()(kinds):
        np.testing.assert_array_equal(prediction.mask, mask)
    stack = make()(np.stack([pixels, pixels]))
    assert len(stack) == 2
    for single in (pixels, picture, path, str(path)):
        assert len(make()(single)) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_grey_files_work_with_a_colour_model(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"grey.{suffix}"
    Image.new("L", (50, 40), 20).save(path)
    assert (make()(path)[0].mask == 0).all()


def test_sixteen_bit_png_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((40, 50), 220 * 256 + 9, np.uint16)).save(path)
    np.testing.assert_array_equal(to_array(path, 1), np.full((40, 50, 1), 220))


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    pixels = COLORS[truth(40, 64)]
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(to_array(path), np.rot90(pixels, -1))


def test_models_of_one_and_two_channels() -> None:
    grey = make(in_channels=1)
    assert grey(COLORS[truth(40, 40)])[0].mask.shape == (40, 40)
    two = make(in_channels=2)
    assert two(np.zeros((40, 40, 2), np.uint8))[0].mask.shape == (40, 40)
    with pytest.raises(ShapeError, match="it has 3 channels, the model takes 2"):
        two(np.zeros((40, 40, 3), np.uint8))


def test_confidence_is_the_probability_of_the_class() -> None:
    image = COLORS[truth(40, 40)]
    predictor = make()
    found = predictor(image, confidence=True)[0]
    probabilities = predictor.logits([image]).softmax(1)[0]
    assert found.confidence is not None
    assert found.confidence.dtype == np.float32
    np.testing.assert_allclose(found.confidence, probabilities.amax(0), rtol=1e-5)
    assert predictor(image)[0].confidence is None


def test_refinement_sees_image_and_probabilities() -> None:
    def swap(image: Tensor, probabilities: Tensor) -> Tensor:
        assert image.shape == (40, 48, 3)
        assert probabilities.shape == (3, 40, 48)
        torch.testing.assert_close(probabilities.sum(0), torch.ones(40, 48))
        return probabilities[[1, 0, 2]]

    predictor = make()
    predictor.crf = swap
    mask = truth(40, 48)
    np.testing.assert_array_equal(predictor(COLORS[mask])[0].mask, np.array([1, 0, 2])[mask])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "cannot be read as an image"),
        (b"plain words", "cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read as an image"),
    ],
)
def test_unreadable_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.png {message}"):
        make()([np.zeros((40, 40, 3), np.uint8), path])


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(COLORS[truth(200, 200)]).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"cut\.jpg cannot be read as an image \(.*truncated"):
        make()(path)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), DataError, "uint8 or uint16, got float32"),
        (np.full((4, 4), 300, np.int32), DataError, r"lie in 300\.\.300"),
        (np.zeros((4, 4, 5), np.uint8), ShapeError, "it has 5 channels"),
        (np.zeros((0, 4, 3), np.uint8), ShapeError, r"got \(0, 4, 3\)"),
        (torch.full((3, 4, 4), 2.0), DataError, "values in 0..1"),
        (torch.zeros(2, 3, 4, 4)[None], ShapeError, "tensor image"),
        (object(), DataError, "cannot be a object"),
    ],
)
def test_unfit_values_are_refused(image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()([image])  # type: ignore[list-item]


def test_no_images_give_no_predictions() -> None:
    assert make()([]) == []


def test_resize_is_pillows() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    expected = Image.fromarray(image).resize((35, 50), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize(image, (50, 35)), np.asarray(expected))
