"""Gradient histograms: what is counted where, and that a report shows the step it stands at."""

import pytest
import torch
from fit_toys import Tiles, toy_net, toy_task
from torch import nn

import segcore
from segcore.engine.gradients import BINS, EDGES, gradient_histograms
from segcore.errors import CheckpointError


def test_magnitudes_are_counted_in_their_bins() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.grad = torch.tensor([[3.0, -3.0, 0.0], [0.02, 1e-30, 1e30]])
    model[0].bias.grad = torch.tensor([float("nan"), float("-inf")])
    histograms = gradient_histograms(model)
    assert list(histograms) == ["0"]
    found = histograms["0"]
    assert (found.zeros, found.not_finite, sum(found.counts)) == (1, 2, 5)
    assert len(found.counts) == BINS == len(EDGES) - 1
    assert found.counts[0] == found.counts[-1] == 1
    for value, count in ((3.0, 2), (0.02, 1)):
        place = max(i for i, edge in enumerate(EDGES) if edge <= value)
        assert found.counts[place] == count


def test_a_report_shows_the_gradients_of_its_step() -> None:
    model = toy_net()
    reports = segcore.fit(
        toy_task(), model, Tiles(), None, epochs=2, lr=0.01, clip_norm=1e-3, device="cpu"
    )
    first = next(reports)
    histograms = first.gradients()
    assert list(histograms) == ["stem.0", "stem.1", "head", "aux"]
    sizes = {name: sum(p.numel() for p in layer.parameters(recurse=False))
             for name, layer in model.named_modules()}  # fmt: skip
    squares = 0.0
    for layer, found in histograms.items():
        assert sum(found.counts) + found.zeros == sizes[layer]
        squares += found.rms**2 * sizes[layer]
    assert squares**0.5 == pytest.approx(1e-3, rel=1e-3)  # as clipped
    next(reports)
    with pytest.raises(CheckpointError, match=r"gradients\(\) of step 5 was asked at step 10"):
        first.gradients()
