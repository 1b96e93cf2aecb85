"""Dense blocks without copies give what their modules give, forward, backward and in averages."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segcore.models import growing_stack
from segcore.models.semantic.fc_densenet import DenseBlock, FCDenseNet

TINY = {"growth_rate": 3, "down_layers": (2, 1), "bottleneck_layers": 2}
IN_CHANNELS = 4


def block(layers: int, dropout: float, dtype: torch.dtype) -> DenseBlock:
    made = DenseBlock(IN_CHANNELS, 3, layers, dropout).to(dtype)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return made


def by_modules(dense: DenseBlock, *parts: Tensor) -> Tensor:
    """The block as Fig. 2 draws it: each layer over the concatenation of all before it."""
    stack = torch.cat(parts, dim=1)
    for layer in dense.layers:
        stack = torch.cat([stack, layer(stack)], dim=1)
    return stack


def gradients(out: Tensor, parts: list[Tensor], dense: DenseBlock) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    return list(torch.autograd.grad((out * weights).sum(), [*parts, *dense.parameters()]))


@settings(max_examples=30, deadline=None)
@given(
    layers=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(2, 7)),
    batch=st.integers(1, 3),
    dropout=st.sampled_from([0.0, 0.3]),
    split=st.integers(1, IN_CHANNELS),
    rows=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_block_equals_its_modules(
    layers: int,
    size: tuple[int, int],
    batch: int,
    dropout: float,
    split: int,
    rows: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    dense = block(layers, dropout, torch.float64).train()
    plain = copy.deepcopy(dense)
    images = 5 * torch.randn(batch, IN_CHANNELS, *size, dtype=torch.float64) + 3
    parts = [part.requires_grad_() for part in images.split([split, IN_CHANNELS - split], dim=1)]
    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing_stack, "BAND_BYTES", 4 * batch * size[1] * IN_CHANNELS * rows)
        out = dense(*parts)
        found = gradients(out, parts, dense)
    torch.set_rng_state(state)  # the same dropout
    expected = by_modules(plain, *parts)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(found, gradients(expected, parts, plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dense.get_buffer(name), buffer, rtol=1e-9, atol=1e-9)


def network(**options: object) -> FCDenseNet:
    torch.manual_seed(0)
    return FCDenseNet(3, 5, **{**TINY, **options})  # type: ignore[arg-type]


def step(model: FCDenseNet, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    out = model(x)["out"]
    nn.functional.cross_entropy(
        out.float(), torch.zeros_like(out[:, 0], dtype=torch.long)
    ).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), grads


def test_network_equals_its_modules_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(dropout=0.2)
    plain = copy.deepcopy(model)
    x = torch.randn(2, 3, 67, 70)
    out, grads = step(model, x)
    monkeypatch.setattr(DenseBlock, "forward", by_modules)
    expected, theirs = step(plain, x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert grads.keys() == theirs.keys()
    for name, grad in theirs.items():
        largest = max(float(grad.abs().max()), 1e-2)
        torch.testing.assert_close(grads[name], grad, rtol=0, atol=1e-4 * largest, msg=name)


def test_bf16_is_near_fp32() -> None:
    model = network(dropout=0.0)
    x = torch.randn(2, 3, 64, 64)
    exact, _ = step(copy.deepcopy(model), x)
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = step(model, x)
    assert out.dtype == torch.bfloat16
    assert float((out.float() - exact).abs().mean()) < 0.05 * float(exact.abs().mean())
    for name, parameter in model.named_parameters():
        assert grads[name].dtype == parameter.dtype
        assert grads[name].isfinite().all()


def test_norms_of_another_kind_are_left_to_their_modules() -> None:
    model = network()
    for module in model.modules():
        if isinstance(module, DenseBlock):
            for layer in module.layers:
                layer[0] = nn.GroupNorm(1, layer[0].num_features)  # type: ignore[index,operator]
    out, grads = step(model, torch.randn(1, 3, 64, 64))
    assert out.isfinite().all()
    assert len(grads) == len(list(model.parameters()))


def test_frozen_norms_use_and_keep_their_averages() -> None:
    model = network(dropout=0.0)
    x = torch.randn(1, 3, 64, 64)
    expected = model.eval()(x)["out"]
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    out, _ = step(model, x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_training_keeps_little_more_than_the_stack() -> None:
    dense = block(6, 0.0, torch.float32).train()
    x = torch.randn(1, IN_CHANNELS, 32, 32, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() if tensor.dim() == 4 and tensor.shape[2] == 32 else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stack = dense(x)
    assert sum(kept) == stack.numel()
