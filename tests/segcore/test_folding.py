"""Batch norms folded into convolutions: where they can be, not where scores would change."""

import copy

import pytest
import torch
from torch import Tensor, nn

from segcore.inference.folding import fold_batch_norms
from segcore.models import create_model


def learned(model: nn.Module) -> nn.Module:
    """Batch norms as training leaves them: nothing that is an identity by chance."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "options", "left"),
    [
        ("linknet", {}, 0),
        ("enet", {}, None),
        ("segnet", {}, 0),
        ("deconvnet", {}, None),
        ("pspnet", {"backbone": "resnet50"}, 16),
        ("unet", {"norm": "batch", "base_channels": 8}, 0),
        ("unet", {"base_channels": 8}, 0),
        ("fc_densenet56", {}, None),
    ],
)
@torch.no_grad()
def test_scores_stay_as_they_were(name: str, options: dict[str, object], left: int | None) -> None:
    model = learned(create_model(name, num_classes=5, **options))
    before, count = copy.deepcopy(model), norms(model)
    folded = fold_batch_norms(model, torch.randn(1, 3, 64, 96))
    assert norms(model) == count - folded
    if left is not None:
        assert norms(model) == left
    x = torch.randn(2, 3, 96, 64)
    expected = before(x)["out"]
    torch.testing.assert_close(
        model(x)["out"], expected, rtol=0, atol=1e-4 * float(expected.abs().max())
    )


class Shortcut(nn.Module):
    """What a convolution makes goes past its batch norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.conv(self.first(x).relu())
        return {"out": x + self.norm(x).relu()}


class Twice(nn.Module):
    """One convolution, one batch norm of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for norm in self.norms:
            x = norm(self.conv(x)).relu()
        return {"out": x}


class Picky(nn.Module):
    """Takes no image of 64 x 64."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(x).view(1, 3, 48, 48)}


@pytest.mark.parametrize("kind", [Shortcut, Twice, Picky])
@torch.no_grad()
def test_what_cannot_be_folded_is_left_bit_for_bit(kind: type[nn.Module]) -> None:
    model = learned(kind())
    before = copy.deepcopy(model)
    x = torch.randn(1, 3, 64, 64)
    assert fold_batch_norms(model, x) == 0
    assert norms(model) == norms(before)
    for key, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    y = torch.randn(1, 3, 48, 48)
    assert torch.equal(model(y)["out"], before(y)["out"])
