"""Augmentation: image and label map change together, by draws that the seed fixes."""

from typing import Any

import numpy as np
import pytest
import torch
from feed_toys import NAMES, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from segcore.data.transforms import Augmentation, displacement
from segcore.errors import OptionError

IGNORE = 255
CORNERS = 20
MEAN = (0.2, 0.4, 0.6)
FILL = torch.tensor([51, 102, 153])


def build(**options: Any) -> Augmentation:
    return Augmentation.from_options(options, ignore_index=IGNORE, mean=MEAN)


def sample(size: tuple[int, int] = (20, 24), number: int = 0) -> tuple[Tensor, Tensor]:
    """Image [3, H, W] whose first channel is ten times the class, and mask [H, W]."""
    image, mask = pixels(number, size)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)


def smooth_sample(height: int = 64, width: int = 80) -> tuple[Tensor, Tensor]:
    """Large flat areas; a label that is off by a pixel at a border shows in the image.

    Interpolation mixes at most half of a difference of 200 into a pixel, corners aside.
    """
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    mask[height // 2 :, width // 2 :] = 2
    image = torch.stack([mask * 100, mask * 50, mask * 20])
    return image, mask


def run(augmentation: Augmentation, pair: tuple[Tensor, Tensor], seed: int = 0) -> Any:
    return augmentation(*pair, rng=np.random.default_rng(seed))


def test_nothing_is_enabled_by_default() -> None:
    assert not build().enabled
    assert not build(elastic_sigma=3.0, scale=[1.0, 1.0], crop=None).enabled
    for options in (
        {"hflip": 0.1},
        {"scale": [0.5, 1]},
        {"crop": [8, 8]},
        {"color": 0.1},
        {"rotate_deg": 1.0},
        {"elastic_alpha": 1.0},
        {"translate_px": 1},
        {"vflip": 0.1},
        {"rot90": 0.1},
        {"class_crops": 0.1},
    ):
        assert build(**options).enabled


def test_flip_is_exact() -> None:
    image, mask = sample()
    flipped, labels = run(build(hflip=1.0), (image, mask))
    assert type(flipped) is Tensor
    assert torch.equal(flipped, image.flip(-1))
    assert torch.equal(labels, mask.flip(-1))


def test_flip_probability_is_met() -> None:
    image, mask = sample()
    augmentation = build(hflip=0.3)
    flips = sum(not torch.equal(run(augmentation, (image, mask), s)[0], image) for s in range(1000))
    assert 250 < flips < 350


def test_same_generator_same_pixels() -> None:
    augmentation = build(
        hflip=0.5, color=0.3, rotate_deg=20.0, elastic_alpha=30.0, elastic_sigma=4.0,
        scale=[0.5, 2.0], crop=[16, 16], translate_px=4,
    )  # fmt: skip
    results = [run(augmentation, sample(), seed) for seed in (1, 1, 2)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(build(hflip=0.5, color=0.3, rotate_deg=9.0, elastic_alpha=5.0, crop=[8, 8]), sample())
    assert torch.equal(before, torch.get_rng_state())


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    crop=st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50)),
    translate_px=st.integers(0, 60),
    hflip=st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_moves_by_whole_pixels_keep_image_and_mask_together(
    seed: int, height: int, width: int, crop: Any, translate_px: int, hflip: float
) -> None:
    augmentation = build(crop=crop, translate_px=translate_px, hflip=hflip)
    image, mask = run(augmentation, sample((height, width), seed), seed)
    size = crop or (height, width)
    assert image.shape == (3, *size)
    assert mask.shape == size
    assert image.dtype == mask.dtype == torch.uint8
    outside = mask == IGNORE
    assert torch.equal(image[0][~outside], mask[~outside] * 10)
    assert torch.equal(image[:, outside], FILL[:, None].expand(3, int(outside.sum())).byte())


@pytest.mark.parametrize(
    "options",
    [
        {"rotate_deg": 30.0},
        {"scale": [0.5, 2.0]},
        {"elastic_alpha": 60.0, "elastic_sigma": 5.0},
        {"rotate_deg": 15.0, "scale": [0.7, 1.4], "translate_px": 9, "crop": [48, 72]},
    ],
)
def test_resampling_keeps_image_and_mask_together(options: dict[str, Any]) -> None:
    changed = 0
    for seed in range(5):
        image, mask = run(build(**options), smooth_sample(), seed)
        inside = mask != IGNORE
        assert set(mask.unique().tolist()) <= {0, 1, 2, IGNORE}
        expected = (mask * 100).int()
        off = ((image[0].int() - expected).abs() > 105) & inside
        assert off.sum() <= CORNERS
        changed += not torch.equal(mask, smooth_sample()[1])
    assert changed >= 4


def test_crop_takes_every_place() -> None:
    image, mask = sample((6, 6))
    windows = {mask[y : y + 4, x : x + 4].numpy().tobytes() for y in range(3) for x in range(3)}
    augmentation = build(crop=[4, 4])
    found = {run(augmentation, (image, mask), s)[1].numpy().tobytes() for s in range(200)}
    assert found == windows


def test_crop_beyond_the_image_is_filled() -> None:
    image, mask = run(build(crop=[40, 40]), sample((20, 24)))
    assert int((mask != IGNORE).sum()) == 20 * 24
    assert torch.equal(image[:, mask == IGNORE].unique(dim=1), FILL[:, None].byte())


def test_vertical_flip_and_quarter_turns_are_exact() -> None:
    image, mask = sample((8, 8))
    flipped, labels = run(build(vflip=1.0), (image, mask))
    assert torch.equal(flipped, image.flip(-2))
    assert torch.equal(labels, mask.flip(-2))
    turns = {run(build(rot90=1.0), (image, mask), s)[1].numpy().tobytes() for s in range(20)}
    assert turns == {torch.rot90(mask, k).contiguous().numpy().tobytes() for k in (1, 3)}
    oblong = sample((8, 12))
    assert torch.equal(run(build(rot90=1.0), oblong)[1], oblong[1])


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 2.0)]),
)
@settings(max_examples=80, deadline=None)
def test_a_crop_lies_over_the_pixel_that_it_is_asked_for(
    seed: int, size: tuple[int, int], crop: tuple[int, int], scale: tuple[float, float]
) -> None:
    rng = np.random.default_rng(seed)
    over = (int(rng.integers(size[0])), int(rng.integers(size[1])))
    augmentation = build(crop=crop, scale=scale)
    top, left, height, width = augmentation._window(size, rng, over)
    assert top <= over[0] < top + height
    assert left <= over[1] < left + width


def test_scale_enlarges() -> None:
    image, mask = smooth_sample()
    twice, labels = run(build(scale=[2.0, 2.0], crop=[128, 160]), (image, mask))
    assert torch.equal(labels[::2, ::2], mask)
    assert twice.shape == (3, 128, 160)
    _, halved = run(build(scale=[0.5, 0.5]), (image, mask))
    assert int((halved != IGNORE).sum()) == 32 * 40


def test_rotation_by_a_known_angle() -> None:
    image = torch.zeros(1, 41, 41, dtype=torch.uint8)
    image[0, 5, 20] = 255
    augmentation = Augmentation(ignore_index=IGNORE, mean=(0.0,), rotate_deg=90.0)

    class Quarter(np.random.Generator):
        def uniform(self, *_: Any) -> Any:
            return 90.0

    turned, mask = augmentation(image, image[0], rng=Quarter(np.random.PCG64(0)))
    assert int(turned[0].argmax()) in (20 * 41 + 35, 20 * 41 + 5)
    assert int(mask.argmax()) == int(turned[0].argmax())


def test_color_leaves_the_mask_and_stays_in_bounds() -> None:
    image, mask = sample()
    changed, labels = run(build(color=0.5), (image, mask))
    assert torch.equal(labels, mask)
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed, image)
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    values = [int(run(build(color=0.2), (grey, mask[:8, :8]), s)[0][0, 0, 0]) for s in range(200)]
    assert min(values) >= 79
    assert max(values) <= 121
    assert max(values) - min(values) > 30


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(channels: int) -> None:
    options = {"color": 0.5, "rotate_deg": 5.0, "hflip": 0.5, "crop": [30, 30], "scale": [0.5, 2]}
    augmentation = Augmentation.from_options(options, ignore_index=IGNORE, mean=(0.5,) * channels)
    image = torch.randint(0, 256, (channels, 20, 24), dtype=torch.uint8)
    changed, _ = run(augmentation, (image, sample()[1]))
    assert changed.shape == (channels, 30, 30)


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    side=st.none() | st.integers(1, 40),
    translate_px=st.integers(0, 40),
    over=st.booleans(),
    ignore_index=st.sampled_from([255, 11, -100]),
)
@settings(max_examples=80, deadline=None)
def test_whole_pixels_move_as_torchvision_moves_them(
    seed: int, size: Any, side: Any, translate_px: int, over: bool, ignore_index: int
) -> None:
    augmentation = Augmentation(
        ignore_index=ignore_index, mean=MEAN, crop=side and (side, side),
        translate_px=translate_px, hflip=0.5, vflip=0.5, rot90=0.5,
    )  # fmt: skip
    assert augmentation.moves_whole_pixels
    image, mask = sample(size, seed % 7)
    point = (size[0] // 2, size[1] - 1) if over else None
    image_, mask_ = augmentation(image, mask, rng=np.random.default_rng(seed), over=point)
    labels = mask if 0 <= ignore_index <= 255 else mask.int()
    items = [tv_tensors.Image(image), tv_tensors.Mask(labels)]
    there = augmentation.apply(items, size, np.random.default_rng(seed), over=point)
    assert torch.equal(image_, there[0].as_subclass(Tensor))
    assert torch.equal(mask_, there[1].as_subclass(Tensor))


@pytest.mark.parametrize("ignore_index", [-100, 11, 70000])
def test_any_ignore_index_fills(ignore_index: int) -> None:
    augmentation = Augmentation.from_options(
        {"crop": [40, 40], "rotate_deg": 20.0, "elastic_alpha": 40.0, "scale": [0.5, 2.0]},
        ignore_index=ignore_index,
        mean=MEAN,
    )
    _, mask = run(augmentation, sample())
    assert set(mask.long().unique().tolist()) == {*range(len(NAMES)), ignore_index}


def test_displacement_follows_its_formula() -> None:
    field = displacement((90, 120), alpha=50.0, sigma=4.0, rng=np.random.default_rng(0))
    assert field.shape == (1, 90, 120, 2)
    in_pixels = field[0] * torch.tensor([120, 90]) / 2
    expected = 50.0 * (1 / 3) ** 0.5 / (2 * np.pi**0.5 * 4.0)
    assert in_pixels[20:-20, 20:-20].std().item() == pytest.approx(expected, rel=0.15)
    steps = (in_pixels[:, 1:] - in_pixels[:, :-1]).abs()
    assert steps.max() < 4 * expected / 4.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hflip": 1.5}, r"hflip is 1\.5; it must be in 0\.\.1"),
        ({"crop": [0, 5]}, r"crop is \(0, 5\)"),
        ({"crop": 5}, r"crop is 5; it takes two numbers"),
        ({"scale": [2.0, 1.0]}, "smallest <= largest"),
        ({"scale": [0.0, 1.0]}, "0 < smallest"),
        ({"scale": "ab"}, "takes two numbers"),
        ({"rotate_deg": 181.0}, r"in 0\.\.180"),
        ({"translate_px": -1}, "at least 0"),
        ({"color": -0.1}, r"color is -0\.1"),
        ({"elastic_sigma": 0.0}, "above 0"),
        ({"elastic_alpha": -1.0}, "at least 0"),
        ({"rotate": 0.5}, "unknown option 'rotate'; did you mean 'rotate_deg'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(**options)
