"""The contract of systems with few masks, what makes each of them itself, and their runs."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from semi_toys import CLASSES, FACTS, SIZE, SMALL, Pictures, Validation
from torch import Tensor, nn

import segcore
from segcore.errors import OptionError, ShapeError
from segcore.models import create_model, list_models, model_card
from segcore.models.semi_supervised.decouplednet import ABSENT
from segcore.models.semi_supervised.gan import SegmentingGAN
from segcore.tasks.semi_supervised import AdversarialTask, DecoupledTask, WeakAdversarialTask

NAMES = list_models("semi_supervised")
VGG16, FC = 14_714_688, 512 * 4096 * 49 + 4096 + 4096**2 + 4096


def small(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, **{"num_classes": CLASSES, **SMALL[name], **more})


def task(name: str, options: Any = None, **more: Any) -> Any:
    return segcore.create_task(
        "semi_supervised", model=name, model_options=options, **FACTS, **more
    )


@pytest.mark.parametrize("name", NAMES)
def test_is_a_semantic_model(name: str) -> None:
    card = model_card(name)
    assert (card.name, card.task) == (name, "semi_supervised")
    model, again = (small(name, num_classes=5, in_channels=4) for _ in range(2))
    x = torch.randn(1, 4, 33, 97)
    for out in (model.train()(x)["out"], model.eval()(x)["out"]):
        assert out.shape == (1, 5, 33, 97)
        assert out.isfinite().all()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x)["out"].isfinite().all()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x)["out"], model(x)["out"])
    with pytest.raises(ShapeError, match=r"31.* too small"):
        model(x[..., :31])
    with pytest.raises(ShapeError, match="in_channels=3"):
        model(x[:, 1:])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_of_one_step_and_learns_there(name: str) -> None:
    model, made = small(name).train(), task(name)
    batch = next(Pictures().epoch(0))
    seen: set[int] = set()
    for step in made.steps():
        own = list(step.parameters(model))
        assert not seen & {id(p) for p in own}
        seen |= {id(p) for p in own}
        model.zero_grad()
        torch.stack(list(step.loss(model, batch).values())).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in own if p.dim() > 1)
    assert seen == {id(p) for p in model.parameters()}


def test_parameters_are_those_of_the_published_layers() -> None:
    counts = {}
    for name in NAMES:
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in create_model(name, num_classes=21).parameters())
        assert counts[name] == model_card(name).parameters
    classifier = VGG16 + FC + 4096 * 21 + 21
    bridge = 1024 * 2048 * 49 + 2048 + 2048**2 + 2048 + 2048 * 512 * 49 + 512
    # The decoder mirrors VGG16's convolutions, but for 64 channels where the image has 3.
    widths = 3 * 512 + 2 * 512 + 256 + 2 * 256 + 128 + 128 + 64 + 2 * 64
    norms = 2 * (1024 + 2048 + 2048 + 512 + widths)
    weights = 9 * (weights_of_vgg16() - 3 * 64 + 64 * 64)
    assert counts["decouplednet"] == classifier + bridge + weights + widths + norms + 2 * 64 + 2


def weights_of_vgg16() -> int:
    sides = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    return sum(a * b for a, b in itertools.pairwise(sides))


def test_activation_maps_are_gradients_of_the_scores() -> None:
    model = small("decouplednet", head_kernel=2).double().train()
    pooled = torch.rand(2, 512, 4, 5, dtype=torch.double, requires_grad=True)
    rows, classes = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    model.dropout = 0.0
    scores = model._score(pooled)
    found = model.activation_maps(pooled, rows, classes)
    for index, (row, klass) in enumerate(zip(rows, classes, strict=True)):
        (gradient,) = torch.autograd.grad(scores[row, klass], pooled, retain_graph=True)
        torch.testing.assert_close(found[index], gradient[row] * 3 * 4)
        assert not gradient[1 - row].any()
    assert found.abs().max() > 0


def test_only_predicted_classes_are_segmented(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("decouplednet").eval()
    odds = torch.tensor([[2.0, -1.0, 3.0], [-1.0, -2.0, -3.0]])
    monkeypatch.setattr(model, "_score", lambda pooled: odds)
    runs: list[tuple[list[int], list[int]]] = []
    segment = model._segment

    def watch(pooled: Tensor, switches: Any, rows: Tensor, classes: Tensor) -> Tensor:
        runs.append((rows.tolist(), classes.tolist()))
        return segment(pooled, switches, rows, classes)

    monkeypatch.setattr(model, "_segment", watch)
    x = torch.randn(2, 3, SIZE, SIZE)
    out = model(x)["out"]
    # The second image has no class above one half: its likeliest.
    assert runs == [([0, 1], [0, 0]), ([0], [2])]
    assert (out[0, 1] == ABSENT).all()
    assert (out[1, 1:] == ABSENT).all()
    pair = model.maps(x[:1], torch.tensor([0]), torch.tensor([2]))[0]
    torch.testing.assert_close(out[0, 2], pair[1] - pair[0])
    model.background = 0
    out = model(x)["out"]
    assert (out[:, 0] == 0).all()
    assert runs[3:] == [([1], [1]), ([0], [2])]


def test_background_is_not_classified_and_void_does_not_count() -> None:
    model, made = small("decouplednet", background=0).train(), task("decouplednet")
    assert isinstance(made, DecoupledTask)
    batch = next(Pictures().epoch(0))
    model.zero_grad()
    made.classify(model, batch)["classes"].backward()
    assert not model.score.weight.grad[0].any()
    assert model.score.weight.grad[1:].flatten(1).any(1).all()
    image = batch["labelled"]["image"]
    for value in (0, 255):
        labelled = {"image": image, "target": torch.full((2, SIZE, SIZE), value)}
        (nothing,) = made.segment(model, {**batch, "labelled": labelled}).values()
        assert nothing.item() == 0
        nothing.backward()
    target = torch.full((2, SIZE, SIZE), 255)
    target[:, :8] = 1
    (loss,) = made.segment(
        model, {**batch, "labelled": {"image": image, "target": target}}
    ).values()
    pairs = model.maps(made.normalise(image), torch.tensor([0, 1]), torch.tensor([1, 1]))
    torch.testing.assert_close(loss, -F.log_softmax(pairs, 1)[:, 1, :8].mean())


def test_one_net_is_fixed_while_the_other_learns() -> None:
    model = small("decouplednet")
    start = {name: p.clone() for name, p in model.named_parameters()}
    seen = []
    for epoch in fit("decouplednet", model, epochs=2, report_steps=None, classification=0.5):
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
        start = {name: p.clone() for name, p in model.named_parameters()}
        seen.append({name.split(".")[0] for name in moved})
        assert ("train/loss/classification/classes" in epoch.metrics) == (epoch.number == 1)
        if epoch.number == 1:
            running = {n: b.clone() for n, b in model.encoder.named_buffers()}
    assert seen[0] == {"encoder", "fc6", "fc7", "score"}
    assert seen[1] == {"spatial_norm", "specific_norm", "bridge", "decoder", "classifier"}
    assert all(torch.equal(b, running[n]) for n, b in model.encoder.named_buffers())


def fit(
    name: str, model: nn.Module, *, epochs: int, options: Any = None, resume: Any = None,
    report_steps: int | None = 1, **more: Any,
) -> Iterator[segcore.Epoch]:  # fmt: skip
    return segcore.fit(
        task(name, options, **more), model, Pictures(2), Validation(1), epochs=epochs, lr=1e-3,
        optimizer="adam", device="cpu", report_steps=report_steps, resume=resume,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"), [("decouplednet", {}), ("gan", {}), ("gan", {"weak": True})]
)
def test_a_resumed_run_is_the_undisturbed_one(name: str, options: dict[str, Any]) -> None:
    whole = small(name, **options)
    states = [epoch.state() for epoch in fit(name, whole, epochs=2, options=options)]
    for state in states[:-1:2]:
        resumed = small(name, **options)
        for _ in fit(name, resumed, epochs=2, options=options, resume=state):
            pass
        for key, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value), key


class Judge(nn.Module):
    """A segmenter whose logits are the image's channels and a constant one for fake."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": torch.cat([x, self.fake.expand(len(x), 1, *x.shape[2:])], 1)}


def test_losses_of_the_gan_are_those_of_k_plus_1_classes() -> None:
    facts = {"num_classes": 3, "mean": [0.0] * 3, "std": [1.0] * 3}
    net = SegmentingGAN(Judge(), 3, 3, noise=4, base_channels=2, weak=False)
    generator = torch.Generator().manual_seed(0)
    image, other = (torch.rand(2, 3, 8, 8, generator=generator) for _ in range(2))
    target = torch.randint(3, (2, 8, 8), generator=generator)
    target[0, 0] = 255
    known = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    batch = {
        "labelled": {"image": image, "target": target},
        "unlabelled": {"image": other, "target": known},
        "weak": {"image": other, "target": known},
    }
    made = AdversarialTask(**segcore_arguments(facts), fake=0.5)
    torch.manual_seed(0)
    terms = made.discriminate(net, batch)
    joint = F.cross_entropy(net.judge(image)["out"], target, ignore_index=255)
    torch.testing.assert_close(terms["cross_entropy"] + terms["not_fake"], joint)
    chance = net.judge(other)["out"].softmax(1)
    torch.testing.assert_close(terms["real"], -(1 - chance[:, 3]).log().mean())
    torch.manual_seed(0)
    made_up = net.generate(2, (8, 8))
    fake = net.judge(made_up)["out"].softmax(1)[:, 3]
    torch.testing.assert_close(terms["fake"], -0.5 * fake.log().mean())
    torch.manual_seed(0)
    torch.testing.assert_close(made.deceive(net, batch)["deceit"], -(1 - fake).log().mean())
    # Weak: a pixel is of one of the image's classes; the second image's are not known.
    weak = WeakAdversarialTask(**segcore_arguments(facts))
    torch.manual_seed(0)
    expected = torch.cat([chance[0, [0, 2]].sum(0), chance[1, :3].sum(0)]).log().mean()
    torch.testing.assert_close(weak.discriminate(net, batch)["real"], -expected)
    with pytest.raises(OptionError, match="fake of the GAN is -1"):
        AdversarialTask(**segcore_arguments(facts), fake=-1)


def segcore_arguments(facts: dict[str, Any]) -> dict[str, Any]:
    from segcore.tasks.semantic import semantic_arguments

    return semantic_arguments(None, **facts)


def test_generated_images_have_any_size_and_the_classes_asked_for() -> None:
    net = small("gan", weak=True).eval()
    torch.manual_seed(3)
    one = net.generate(2, (33, 70), torch.eye(CLASSES)[:2])
    assert one.shape == (2, 3, 33, 70)
    assert 0 <= one.min().item() <= one.max().item() <= 1
    torch.manual_seed(3)
    other = net.generate(2, (33, 70), torch.eye(CLASSES)[[0, 2]])
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    with pytest.raises(OptionError, match="told classes"):
        net.generate(1, (32, 32))


def test_the_segmenter_alone_is_the_model_and_keeps_its_statistics() -> None:
    net = small("gan", segmenter="unet", segmenter_options={"base_channels": 4, "norm": "batch"})
    x = torch.randn(2, 3, SIZE, SIZE)
    net.eval()
    torch.testing.assert_close(net(x)["out"], net.segmenter(x)["out"][:, :CLASSES])
    net.train()
    before = {n: b.clone() for n, b in net.segmenter.named_buffers() if "running" in n}
    task("gan").deceive(net, next(Pictures().epoch(0)))
    now = dict(net.segmenter.named_buffers())
    assert before
    assert all(torch.equal(b, now[n]) for n, b in before.items())
    task("gan").discriminate(net, next(Pictures().epoch(0)))
    assert any(not torch.equal(b, now[n]) for n, b in before.items())


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(OptionError, match="gan needs 2 at least"):
        small("gan", num_classes=1)
    with pytest.raises(OptionError, match="segmenter is 'mask_rcnn'"):
        small("gan", segmenter="mask_rcnn")
    with pytest.raises(OptionError, match="backbone is 'resnet18'"):
        small("decouplednet", backbone="resnet18")
    with pytest.raises(OptionError, match="background is 3"):
        small("decouplednet", background=3)
    with pytest.raises(OptionError, match="both phases need a share"):
        task("decouplednet", classification=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_learns_three_colours(name: str) -> None:
    model = small(name, **({"dropout": 0.0} if name == "decouplednet" else {}))
    best = 0.0
    for epoch in segcore.fit(
        task(name), model, Pictures(20, 4), Validation(2, 4), epochs=15, lr=1e-3,
        optimizer="adam", schedule="constant", device="cpu",
    ):  # fmt: skip
        best = max(best, epoch.metrics["val/miou"])
        if best > 0.9:
            return
    pytest.fail(f"mIoU reached {best:.3f}")
