"""Images of more than 8 bits: brought to 8 by one rule, in shards as in prediction."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.data.codec import open_image, to_eight_bit
from segcore.data.prepare import Validation, prepare
from segcore.data.shards import open_shards
from segcore.datasets import DataSource, create_dataset
from segcore.errors import DataError
from segcore.inference.images import to_array

SIZE = (24, 20)


def camera(seed: int, channels: int = 1) -> np.ndarray:
    """uint16 of a 12-bit camera: the upper byte alone has 16 levels."""
    shape = (*SIZE, channels) if channels > 1 else SIZE
    return np.random.default_rng(seed).integers(100, 4096, shape).astype(np.uint16)


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow writes for grey only."""
    height, width, channels = pixels.shape
    kind = {2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def prepare_folder(path: Path, **options: object) -> Validation:
    dataset = create_dataset("folder", DataSource(raw=path.parent / "raw", path=path))
    return prepare(dataset, path.parent / "out", workers=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 7, 255]], np.uint16), [[0, 7, 255]]),
        (np.array([[1000, 2000, 3000]], np.uint16), [[0, 128, 255]]),
        (np.array([[-1000, 0, 1000]], np.int32), [[0, 128, 255]]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [[0, 128, 255]]),
        (np.array([[-2.0, 0.0, 2.0]], np.float32), [[0, 128, 255]]),
        (np.full((1, 2), 0x1234, np.uint16), [[0x12, 0x12]]),
        (np.array([[[5, 6, 7]]], np.uint8), [[[5, 6, 7]]]),
    ],
)
def test_rule(pixels: np.ndarray, expected: list[object]) -> None:
    brought = to_eight_bit(pixels)
    assert brought.dtype == np.uint8
    assert np.abs(brought.astype(int) - expected).max() <= 1


def test_a_hot_pixel_does_not_darken_the_rest() -> None:
    pixels = np.tile(np.arange(300, 1324, dtype=np.uint16), (64, 1))
    pixels[3, 3] = 65535
    assert np.median(to_eight_bit(pixels)) == pytest.approx(127, abs=2)
    dark = np.full((100, 100), 300, np.uint16)
    dark[5, 5] = 900
    assert np.unique(to_eight_bit(dark)).tolist() == [0, 255]


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    pixels = np.full(SIZE, np.nan, np.float32)
    with pytest.raises(DataError, match="infinite or no numbers"):
        to_eight_bit(pixels)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif.*infinite or no numbers"):
        to_array(tmp_path / "x.tif")


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("size", [None, (12, 10)])
def test_grey_images_are_stored_in_eight_bits(
    tmp_path: Path, suffix: str, size: tuple[int, int] | None
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "own" / kind).mkdir(parents=True)
    for number in range(4):
        Image.fromarray(camera(number)).save(tmp_path / f"own/images/s{number}.{suffix}")
        mask = Image.fromarray((camera(number) % 3).astype(np.uint16))
        mask.save(tmp_path / f"own/masks/s{number}.{suffix}")
    validation = prepare_folder(tmp_path / "own", size=size)
    assert validation.faults == ()
    assert validation.info.num_classes == 3
    shards = open_shards(tmp_path / "out")
    assert (shards.in_channels, shards.fingerprint["deep_share"]) == (1, 1)
    train = shards.split("train")
    number = int(train.ids[0][1:])
    image, mask = train.decode(0)
    assert open_image(train.read(0).image).mode == "L"
    assert mask is not None
    if size is None:
        np.testing.assert_array_equal(image[:, :, 0], to_eight_bit(camera(number)))
        np.testing.assert_array_equal(mask, camera(number) % 3)
        file = tmp_path / f"own/images/s{number}.{suffix}"
        for source in (file, Image.open(file), camera(number)):
            np.testing.assert_array_equal(to_array(source, 1), image)
    else:
        assert image.std() > 20


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_low_bytes_of_colour_png_are_read(tmp_path: Path, channels: int) -> None:
    pixels = camera(0, channels)
    (tmp_path / "a.png").write_bytes(deep_png(pixels))
    kept = pixels[:, :, : 1 if channels == 2 else 3]
    expected = np.broadcast_to(to_eight_bit(kept), (*SIZE, 3))
    np.testing.assert_array_equal(to_array(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(to_array(pixels), expected)
    assert len(np.unique(expected)) > 200


def test_colour_tiff_is_told_to_lose_its_low_bits(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "own" / kind).mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"own/images/s{number}.tif").write_bytes(deep_tiff(camera(number, 3)))
        Image.fromarray((camera(number) % 2).astype(np.uint8)).save(
            tmp_path / f"own/masks/s{number}.png"
        )
    (fault,) = prepare_folder(tmp_path / "own").faults
    assert (fault.fault, fault.severity) == ("16-bit colour image", "warning")
    assert "3 images, first" in fault.value


def deep_tiff(pixels: np.ndarray) -> bytes:
    """An uncompressed little-endian TIFF of 16 bits per channel."""
    height, width, channels = pixels.shape
    data = pixels.astype("<u2").tobytes()
    bits = 8 + len(data)
    after = bits + 2 * channels
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height),
        (279, 4, 1, len(data)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHI", b"II", 42, after) + data
    depths = struct.pack(f"<{channels}H", *[16] * channels)
    return head + depths + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
