"""Small models, loaders and tasks that the tests of the training loop run."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segcore.tasks import Batch, Step, Task, create_task
from segcore.tasks.semantic import SemanticTask

CLASSES = 3


class Tiles:
    """Images whose brightness is the class; a pure function of (epoch, step), whatever the ranks.

    A batch of 4 images over all ranks; each rank has its slice.
    """

    def __init__(self, steps: int = 5, rank: int = 0, world_size: int = 1) -> None:
        self.steps, self.rank, self.world_size = steps, rank, world_size
        self.opened: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        self.opened.append((number, start))
        for step in range(start, self.steps):
            generator = torch.Generator().manual_seed(number * 1000 + step)
            target = torch.randint(CLASSES, (4, 4, 4), generator=generator)
            target = target.repeat_interleave(3, 1).repeat_interleave(3, 2)
            noise = torch.randint(-30, 30, (4, 3, 12, 12), generator=generator)
            image = (target[:, None] * 90 + 30 + noise).to(torch.uint8)
            mine = slice(self.rank, None, self.world_size)
            yield {"image": image[mine], "target": target[mine], "id": list("abcd")[mine]}


class ToyNet(nn.Module):
    """Two convolutions, with an auxiliary output in training."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Conv2d(8, CLASSES, 1)
        self.aux = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x)
        outputs = {"out": self.head(features)}
        return outputs | {"aux": self.aux(features)} if self.training else outputs


def toy_net(**options: Any) -> ToyNet:
    torch.manual_seed(3)
    return ToyNet(**options)


def toy_task() -> SemanticTask:
    task = create_task("semantic", num_classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3)
    assert isinstance(task, SemanticTask)
    return task


class Boxes:
    """Images of unlike sizes with one bright box each; targets are dicts in a list."""

    def __init__(self, steps: int = 3, rank: int = 0, world_size: int = 1) -> None:
        self.steps, self.rank, self.world_size = steps, rank, world_size

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.steps):
            pairs = [_box(number * 1000 + step * 10 + i, 10 + 2 * i + step) for i in range(4)]
            pairs = pairs[self.rank :: self.world_size]
            yield {"image": [image for image, _ in pairs], "target": [box for _, box in pairs]}


def _box(seed: int, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, size - 5, (2,), generator=generator).tolist()
    image = torch.rand(1, size, size + 3, generator=generator) * 0.2
    image[:, y : y + 5, x : x + 5] += 0.8
    box = torch.tensor([[x, y, x + 5, y + 5]], dtype=torch.float32)
    return image, {"boxes": box, "labels": torch.ones(1, dtype=torch.int64)}


class BoxNet(nn.Module):
    """torchvision's convention: losses in training, a list of dicts in eval; and a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 4, 5, padding=2)
        self.box = nn.Linear(4, 4)
        self.critic = nn.Linear(4, 1)

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        pooled = torch.stack([self.features(x[None]).relu().mean((2, 3))[0] for x in images])
        boxes = self.box(pooled) * 10
        if not self.training:
            scores = self.critic(pooled).sigmoid()
            pairs = zip(boxes, scores, strict=True)
            return [{"boxes": box[None], "scores": score} for box, score in pairs]
        truth = torch.cat([target["boxes"] for target in targets])
        judged = self.critic(pooled).squeeze(1)
        return {
            "box": functional.smooth_l1_loss(boxes, truth),
            "fooled": functional.softplus(-judged).mean(),
            "told": functional.softplus(judged - pooled.mean(1)).mean(),
        }


class BoxTask(Task):
    """A detector and its critic, which learn in turns; lists of dicts; a metric that gathers."""

    def __init__(self) -> None:
        self.batches = 0

    def steps(self) -> Sequence[Step]:
        return (
            Step("critic", self._critic, lambda model: model.critic.parameters(), lr_factor=0.5),
            Step("detector", self._detector, _detector_parameters),
        )

    def _critic(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"told": model(batch["image"], batch["target"])["told"]}

    def _detector(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses = model(batch["image"], batch["target"])
        return {"box": losses["box"], "fooled": 0.1 * losses["fooled"]}

    def after_step(self, model: nn.Module) -> None:
        self.batches += 1

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch["image"])

    def new_metric(self) -> "BoxMetric":
        return BoxMetric()

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: Any) -> None:
        self.batches = state["batches"]


def _detector_parameters(model: Any) -> list[nn.Parameter]:
    return [*model.features.parameters(), *model.box.parameters()]


class BoxMetric:
    """The median error of all boxes: no sum of counts, so workers must gather their lists."""

    def __init__(self) -> None:
        self.errors: list[float] = []

    def update(self, prediction: Any, target: Any) -> None:
        for found, truth in zip(prediction, target, strict=True):
            self.errors.append(float((found["boxes"] - truth["boxes"]).abs().mean()))

    def compute(self) -> dict[str, float]:
        ordered = sorted(self.errors)
        return {"median_error": ordered[len(ordered) // 2], "images": float(len(ordered))}

    def state(self) -> list[float]:
        return self.errors

    def merge(self, states: Sequence[list[float]]) -> None:
        self.errors = [error for state in states for error in state]
