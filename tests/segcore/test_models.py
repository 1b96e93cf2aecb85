"""The contract of every registered semantic architecture; a new one is tested by being listed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError, ShapeError, UnknownNameError
from segcore.models import create_model, list_models, model_card, model_options
from segcore.models.upsampling import UPSAMPLINGS

NAMES = list_models("semantic")
CLASSES, CHANNELS = 3, 4
ODD = {2: (33, 97), 3: (33, 40, 47)}
EVEN = {2: (64, 64), 3: (32, 32, 32)}
LARGE = {2: (301, 517), 3: (45, 77, 61)}


def images(
    name: str, size: dict[int, tuple[int, ...]], *, batch: int = 1, channels: int = CHANNELS
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, *size[model_card(name).input_dims])
    return torch.randn(shape, generator=generator)


def wake(model: nn.Module) -> nn.Module:
    """Give parameters that start at zero (score layers, say) a value that passes gradients on."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def unless_excepted(name: str, check: str, run: Callable[[], None]) -> None:
    """Run a check; where the card declares an exception from it, prove that it does fail."""
    if check in model_card(name).exceptions:
        with pytest.raises(Exception, match=r"."):
            run()
    else:
        run()


@pytest.fixture(scope="module", params=NAMES)
def built(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    name = request.param
    return name, wake(create_model(name, num_classes=CLASSES, in_channels=CHANNELS))


def test_trains_on_one_odd_image(built: tuple[str, nn.Module]) -> None:
    name, model = built
    model.train().zero_grad()
    x = images(name, ODD)
    maps = model(x)
    assert maps["out"].shape == (1, CLASSES, *x.shape[2:])
    torch.manual_seed(0)
    loss = sum((m * torch.randn_like(m)).mean() for m in maps.values())
    assert isinstance(loss, Tensor)
    assert loss.isfinite()
    loss.backward()
    trained = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    assert [key for key, p in trained if p.grad is None] == []
    # The bias of a convolution before batch norm rightly has none; kernels must have one.
    assert [key for key, p in trained if p.dim() > 1 and not p.grad.any()] == []  # type: ignore[union-attr]
    assert all(p.grad.isfinite().all() for _, p in trained if p.grad is not None)
    model.zero_grad(set_to_none=True)


def test_eval_is_deterministic_and_survives_a_state_dict(built: tuple[str, nn.Module]) -> None:
    name, model = built
    # A twin without memory of its own: what its state_dict lacks cannot be computed.
    with torch.device("meta"):
        twin = create_model(name, num_classes=CLASSES, in_channels=CHANNELS)
    twin.load_state_dict(model.state_dict(), assign=True)
    x = images(name, EVEN)
    with torch.no_grad():
        expected = model.eval()(x)["out"]
        assert torch.equal(twin.eval()(x)["out"], expected)
    assert expected.shape == (1, CLASSES, *x.shape[2:])
    assert expected.std() > 0


def test_is_finite_under_bf16_autocast(built: tuple[str, nn.Module]) -> None:
    name, model = built

    def run() -> None:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.eval()(images(name, EVEN))["out"].isfinite().all()

    unless_excepted(name, "bf16", run)


def test_refuses_images_that_do_not_fit(built: tuple[str, nn.Module]) -> None:
    name, model = built
    x = images(name, EVEN)
    side = model_card(name).min_size - 1
    with pytest.raises(ShapeError, match=f"{side}.* too small"):
        model(x[..., :side])
    with pytest.raises(ShapeError, match=f"in_channels={CHANNELS - 1}"):
        model(x[:, 1:])
    with pytest.raises(ShapeError, match="give"):
        model(x[0])


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_channels_and_classes(name: str) -> None:
    for in_channels, num_classes, size in ((1, 1, ODD), (4, 2, EVEN), (3, 21, LARGE)):
        with torch.device("meta"):
            model = create_model(name, num_classes=num_classes, in_channels=in_channels)
        x = images(name, size, batch=2, channels=in_channels).to("meta")
        for out in (model.train()(x)["out"], model.eval()(x)["out"]):
            assert out.shape == (2, num_classes, *x.shape[2:])


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_published_one(name: str) -> None:
    card = model_card(name)
    for num_classes, expected in {**card.counts, 21: card.parameters}.items():
        with torch.device("meta"):
            model = create_model(name, num_classes=num_classes)
        assert sum(p.numel() for p in model.parameters()) == expected, num_classes


@pytest.mark.parametrize("name", [n for n in NAMES if "upsample" in model_options(n)])
def test_decoder_takes_every_upsampling(name: str) -> None:
    x = images(name, ODD, channels=3).to("meta")
    for kind in UPSAMPLINGS:
        with torch.device("meta"):
            model = create_model(name, num_classes=2, upsample=kind)
        assert model.eval()(x)["out"].shape == (1, 2, *x.shape[2:]), kind
    with pytest.raises(OptionError, match="max_unpool"):
        create_model(name, num_classes=2, upsample="max_unpool")


@pytest.mark.parametrize("name", NAMES)
def test_card_is_complete(name: str) -> None:
    card = model_card(name)
    assert card.name == name
    assert card.task == "semantic"
    assert "" not in (card.title, card.paper)
    assert 1990 < card.year < 2100
    assert card.input_dims in (2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_what_it_cannot_build(name: str) -> None:
    with pytest.raises(OptionError, match="wheels"):
        create_model(name, num_classes=2, wheels=4)
    with pytest.raises(OptionError, match="num_classes is 0"):
        create_model(name, num_classes=0)
    with pytest.raises(OptionError, match="in_channels is 0"):
        create_model(name, num_classes=2, in_channels=0)
    assert not {"num_classes", "in_channels", "pretrained"} & set(model_options(name))


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'linknet'"):
        create_model("linkent", num_classes=2)
    with pytest.raises(UnknownNameError, match="fcn_resnet50"):
        create_model("torchvision:fcn_resnet5", num_classes=2)


@pytest.mark.parametrize("builder", ["lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvision_models_plug_in(builder: str) -> None:
    options = {"aux_loss": True} if builder.startswith("fcn") else {}
    with torch.device("meta"):
        model = create_model(f"torchvision:{builder}", num_classes=5, in_channels=4, **options)
    maps = model(torch.empty(2, 4, 65, 97, device="meta"))
    assert all(m.shape == (2, 5, 65, 97) for m in maps.values())
    assert ("aux" in maps) == bool(options)
    with pytest.raises(OptionError, match="no option 'dropout'"):
        create_model(f"torchvision:{builder}", num_classes=5, dropout=0.1)


@pytest.mark.slow
def test_large_odd_image(built: tuple[str, nn.Module]) -> None:
    name, model = built
    x = images(name, LARGE)
    out = model.train()(x)["out"]
    assert out.shape == (1, CLASSES, *x.shape[2:])
    out.square().mean().backward()
    model.zero_grad(set_to_none=True)


@pytest.mark.slow
def test_exports(built: tuple[str, nn.Module]) -> None:
    name, model = built
    x = images(name, ODD)

    def run() -> None:
        with torch.no_grad():
            exported = torch.export.export(model.eval(), (x,)).module()
            torch.testing.assert_close(exported(x)["out"], model(x)["out"], rtol=1e-3, atol=1e-3)

    unless_excepted(name, "export", run)


@pytest.mark.slow
def test_compiles_in_one_graph(built: tuple[str, nn.Module]) -> None:
    name, model = built
    x = images(name, ODD)

    def run() -> None:
        torch._dynamo.reset()
        # The CPU's C++ backend takes minutes a model; capture and autograd are what can fail.
        compiled = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
        compiled(x)["out"].square().mean().backward()
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            out = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")(x)["out"]
            torch.testing.assert_close(out, model(x)["out"], rtol=1e-3, atol=1e-3)

    unless_excepted(name, "compile", run)


def four_images(name: str, device: str) -> tuple[Tensor, Tensor]:
    """Images of two flat colours and noise, split along one axis, and their masks."""
    size = EVEN[model_card(name).input_dims]
    masks = torch.zeros(4, *size, dtype=torch.int64)
    half = size[-1] // 2
    masks[0, ..., :half], masks[1, ..., half:] = 1, 2
    masks[2, ..., :half, :], masks[3, ..., half:, :] = 2, 1
    x = F.one_hot(masks, CLASSES).movedim(-1, 1).float()
    torch.manual_seed(0)
    return (x + 0.1 * torch.randn_like(x)).to(device), masks.to(device)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_overfits_four_images(name: str) -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create_model(name, num_classes=CLASSES).to(device)
    x, masks = four_images(name, device)
    # VGG's depth without batch norm diverges at the rate that the others learn with; at this one
    # it is also done in a tenth of the steps, which matters at seconds a step.
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    deep = sum(p.numel() for p in model.parameters()) > 20_000_000
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4 if deep and not normed else 5e-4)
    best = 0.0
    for step in range(400):
        model.train()
        maps = model(x).values()
        loss = torch.stack([F.cross_entropy(m, masks) for m in maps]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            with torch.no_grad():
                predicted = model.eval()(x)["out"].argmax(1)
            pairs = torch.bincount((masks * CLASSES + predicted).flatten(), minlength=CLASSES**2)
            table = pairs.reshape(CLASSES, CLASSES).double()
            union = table.sum(0) + table.sum(1) - table.diag()
            best = max(best, float((table.diag() / union).mean()))
            if best > 0.95:
                return
    pytest.fail(f"mIoU reached {best:.3f} on four images")
