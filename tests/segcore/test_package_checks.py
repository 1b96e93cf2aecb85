"""A package cannot ask for more memory than the file of its weights stands for."""

import math
from pathlib import Path

import pytest
import torch

from segcore.errors import PackageError
from segcore.models import create_model, list_models
from segcore.package_checks import SLACK, Bounded, build_bounded

FOREIGN = ["torchvision:deeplabv3_resnet50", "torchvision:maskrcnn_resnet50_fpn_v2"]


@pytest.mark.parametrize("name", [*list_models(), *FOREIGN])
def test_every_byte_of_a_model_is_counted_and_few_that_are_none(name: str) -> None:
    counted = Bounded(math.inf, Path("weights"))
    with torch.device("meta"), counted:
        model = create_model(name, num_classes=5)
    state = model.state_dict().values()
    needed = sum(t.numel() * t.element_size() for t in state if t.ndim)  # scalars ask for nothing
    assert needed <= counted.bytes <= 2 * needed


def test_what_is_too_large_is_refused_before_it_is_allotted(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(1000))
    with pytest.raises(
        PackageError, match=f"has 1000 bytes, the model that is described has {4 * 10**15}"
    ):
        build_bounded(lambda: torch.nn.Linear(10**15, 1, bias=False), weights)
    build_bounded(lambda: torch.nn.Linear(SLACK // 4, 1, bias=False), weights)
    with pytest.raises(PackageError, match="copy the package again"):
        build_bounded(lambda: torch.nn.Linear(SLACK, 1, bias=False), weights)


def test_a_file_that_is_too_large_for_its_model_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(SLACK + 1000))
    with pytest.raises(PackageError, match="the model that is described has 40"):
        build_bounded(lambda: torch.nn.Linear(10, 1, bias=False), weights)
