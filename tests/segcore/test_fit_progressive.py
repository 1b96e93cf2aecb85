"""Progressive resizing: the first part of a run at half size."""

from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from fit_toys import Boxes, BoxNet, BoxTask, Tiles, toy_net
from hypothesis import given, settings
from torch import Tensor, nn

import segcore
from segcore.errors import OptionError
from segcore.tasks import Batch
from segcore.tasks.semantic import SemanticTask
from segcore.tasks.semantic.smaller import halve_images, halve_targets


class Watched(SemanticTask):
    """Notes the size of each batch that it trains on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sizes: list[int] = []

    def training_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert batch["image"].shape[-2:] == batch["target"].shape[-2:]
        self.sizes.append(batch["image"].shape[-1])
        return super().training_step(model, batch)


def watched() -> Watched:
    return Watched(
        num_classes=3,
        loss=nn.CrossEntropyLoss(ignore_index=255),
        ignore_index=255,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )


@pytest.mark.parametrize(("share", "small"), [(0.0, 0), (0.5, 5), (0.65, 7)])
def test_so_many_of_the_steps_come_first_at_half_size(share: float, small: int) -> None:
    task = watched()
    options = {"epochs": 2, "lr": 0.01, "device": "cpu", "progressive": share}
    for epoch in segcore.fit(task, toy_net(), Tiles(), Tiles(2), **options):
        assert 0 <= epoch.metrics["val/miou"] <= 1
    assert task.sizes == [6] * small + [12] * (10 - small)


def test_by_the_clock_the_share_is_of_the_time() -> None:
    task = watched()
    options = {"epochs": 1, "lr": 0.01, "device": "cpu", "progressive": 0.5, "max_minutes": 0.01}
    list(segcore.fit(task, toy_net(), Tiles(10**6), None, **options))
    small = task.sizes.count(6)
    assert task.sizes == [6] * small + [12] * (len(task.sizes) - small)
    assert 0 < small < len(task.sizes)


def test_a_task_that_cannot_halve_its_batches_is_refused() -> None:
    with pytest.raises(OptionError, match=r"progressive is 0\.5, but BoxTask cannot halve"):
        segcore.fit(BoxTask(), BoxNet(), Boxes(), epochs=1, lr=0.1, progressive=0.5)


@settings(deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    whole=st.booleans(),
    last=st.booleans(),
)
def test_pixels_are_means_and_classes_are_chosen(
    height: int, width: int, whole: bool, last: bool
) -> None:
    generator = torch.Generator().manual_seed(height * 10 + width)
    image = torch.randint(256, (2, 3, height, width), generator=generator).to(torch.uint8)
    image = image if whole else image / 255
    if last:
        image = image.contiguous(memory_format=torch.channels_last)
    small = halve_images(image)
    assert (small.dtype, small.shape[-2:]) == (image.dtype, (-(-height // 2), -(-width // 2)))
    for y in range(small.shape[-2]):
        for x in range(small.shape[-1]):
            mean = image[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].float().mean((2, 3))
            expected = mean.round() if whole else mean
            torch.testing.assert_close(small[:, :, y, x].float(), expected, atol=1e-6, rtol=1e-6)
    target = torch.arange(2 * height * width).view(2, height, width)
    assert halve_targets(target).tolist() == [
        [row[::2] for row in rows[::2]] for rows in target.tolist()
    ]


def test_layout_is_kept() -> None:
    image = torch.zeros(2, 3, 8, 8, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert halve_images(image).is_contiguous(memory_format=torch.channels_last)


def test_a_batch_keeps_what_is_not_pixels() -> None:
    batch: Mapping[str, Any] = next(iter(Tiles().epoch(0)))
    small = watched().smaller(batch)
    assert small["id"] == batch["id"]
    assert small["image"].shape == (4, 3, 6, 6)
