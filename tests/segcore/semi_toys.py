"""Pictures of three flat colours, with masks and without, for systems that learn from both."""

from collections.abc import Iterator
from typing import Any

import torch

CLASSES = 3
SIZE = 64
FACTS: dict[str, Any] = {"num_classes": CLASSES, "mean": [0.5] * 3, "std": [0.25] * 3}
SMALL: dict[str, dict[str, Any]] = {
    "decouplednet": {
        "backbone": "vgg11_bn", "head_kernel": 1, "fc_channels": 32, "bridge_channels": 32,
    },
    "gan": {
        "segmenter": "unet_small", "segmenter_options": {"base_channels": 8}, "noise": 8,
        "base_channels": 4,
    },
}  # fmt: skip


def pictures(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [N, 3, S, S] and int64 [N, S, S]: two halves of two of the three classes."""
    first = torch.randint(CLASSES, (count,), generator=generator)
    second = (first + torch.randint(1, CLASSES, (count,), generator=generator)) % CLASSES
    mask = first.view(-1, 1, 1).repeat(1, SIZE, SIZE)
    mask[:, :, SIZE // 2 :] = second.view(-1, 1, 1)
    colour = torch.nn.functional.one_hot(mask, CLASSES).movedim(-1, 1) * 150 + 40
    noise = torch.randint(-30, 31, colour.shape, generator=generator)
    return (colour + noise).to(torch.uint8), mask


def present(mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([(mask == k).flatten(1).any(1) for k in range(CLASSES)], 1).float()


class Pictures:
    """Batches of every stream, a pure function of (epoch, step)."""

    def __init__(self, steps: int = 4, count: int = 2) -> None:
        self.steps, self.count = steps, count

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        for step in range(start, self.steps):
            generator = torch.Generator().manual_seed(1000 * number + step)
            image, mask = pictures(self.count, generator)
            other, hidden = pictures(self.count, generator)
            rest = {"image": other, "strong": other // 2, "target": present(hidden)}
            yield {
                "labelled": {"image": image, "target": mask}, "weak": rest, "unlabelled": rest,
            }  # fmt: skip


class Validation(Pictures):
    """The labelled part alone."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        for batch in super().epoch(number + 77, start):
            yield batch["labelled"]
