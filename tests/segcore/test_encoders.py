"""Backbones: strides, dilation, input channels, weights from the cache and from files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from segcore.encoders import create_encoder, list_encoders
from segcore.encoders.first_conv import adapt_weight
from segcore.encoders.resnet import trunk
from segcore.errors import CheckpointError, OptionError, UnknownNameError
from segcore.models import create_model

# One of each family; test_every_backbone takes the rest.
FAMILIES = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "googlenet_caffe",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "vgg11_bn",
)
TRUNKS = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032,
          "vgg16": 14_714_688, "vgg16_bn": 14_723_136, "googlenet": 5_599_904,
          "googlenet_caffe": 5_973_552}  # fmt: skip


def random_statistics(network: nn.Module) -> None:
    """Batch norm of a trained network, so that eval mode is not an identity."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_pyramid_has_the_channels_and_strides_it_states(name: str) -> None:
    encoder = create_encoder(name, in_channels=2).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 2, 128, 192))
    assert encoder.output_stride == encoder.strides[-1] == 32
    assert [f.shape[1] for f in features] == encoder.out_channels
    for feature, stride in zip(features, encoder.strides, strict=True):
        # AlexNet's unpadded poolings lose a row.
        assert abs(feature.shape[2] - 128 / stride) <= (name == "alexnet")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(list_encoders()) - set(FAMILIES)))
def test_every_backbone(name: str) -> None:
    test_pyramid_has_the_channels_and_strides_it_states(name)


@pytest.mark.parametrize(("name", "expected"), TRUNKS.items())
def test_trunk_has_the_published_parameters(name: str, expected: int) -> None:
    encoder = create_encoder(name)
    assert sum(p.numel() for p in encoder.parameters()) == expected


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_features_contain_the_strided_ones(name: str, output_stride: int) -> None:
    torch.manual_seed(0)
    plain = create_encoder(name).eval()
    random_statistics(plain)
    dense = create_encoder(name, output_stride=output_stride).eval()
    dense.load_state_dict(plain.state_dict())
    assert dense.strides == [min(s, output_stride) for s in plain.strides]
    x = torch.randn(1, 3, 288, 320) if name == "alexnet" else torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        pairs = zip(plain(x), dense(x), plain.strides, dense.strides, strict=True)
        for coarse, fine, stride, dense_stride in pairs:
            step = stride // dense_stride
            read = fine[:, :, ::step, ::step][:, :, : coarse.shape[2], : coarse.shape[3]]
            if name == "alexnet":  # unpadded pooling sees another right and lower border
                coarse, read = coarse[:, :, :1, :1], read[:, :, :1, :1]
            # Squeeze-excitation averages over the denser map, so it agrees only roughly.
            loose = name.startswith(("mobilenet_v3", "efficientnet"))
            scale = float(coarse.abs().max())
            torch.testing.assert_close(read, coarse, rtol=0, atol=scale * (1e-3 if loose else 1e-5))


def test_first_layer_is_summed_or_repeated() -> None:
    timm = pytest.importorskip("timm")
    weight = torch.randn(8, 3, 3, 3)
    for channels in (1, 2, 4, 7):
        expected = timm.models.adapt_input_conv(channels, weight)
        torch.testing.assert_close(adapt_weight(weight, channels), expected)


def test_gray_image_gives_what_its_rgb_copy_gives(tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.save(trunk("resnet18").state_dict(), weights)
    rgb = create_encoder("resnet18", pretrained=weights).eval()
    gray = create_encoder("resnet18", in_channels=1, pretrained=weights).eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(gray(x)[-1], rgb(x.expand(-1, 3, -1, -1))[-1])


def test_same_function_as_torchvision() -> None:
    import torchvision

    for name in ("resnet18", "resnext50_32x4d", "vgg13_bn"):
        theirs = torchvision.models.get_model(name).eval()
        random_statistics(theirs)
        state = theirs.state_dict()
        encoder = create_encoder(name).eval()
        keys = encoder.trunk.state_dict().keys()  # type: ignore[union-attr]
        found = {k: state[k] if k in state else state[f"features.{k}"] for k in keys}
        encoder.trunk.load_state_dict(found)  # type: ignore[union-attr]
        layer = "layer4" if "res" in name else "features"
        body = torchvision.models.feature_extraction.create_feature_extractor(theirs, {layer: "y"})
        x = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(encoder(x)[-1], body(x)["y"])


def test_pretrained_comes_from_the_hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(7)
    cached = torchvision.models.resnet18()
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(cached.state_dict(), file)
    encoder = create_encoder("resnet18", pretrained=True)
    torch.testing.assert_close(encoder.trunk.conv1.weight, cached.conv1.weight)  # type: ignore[union-attr]
    model = create_model("linknet", num_classes=2, pretrained=True)
    last = model.encoder.trunk.layer4[1].conv2.weight  # type: ignore[union-attr]
    torch.testing.assert_close(last, cached.layer4[1].conv2.weight)


def test_offline_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # A proxy that refuses every connection stands for a machine without network.
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(OptionError, match="resnet18-f37072fd") as error:
        create_encoder("resnet18", pretrained=True)
    assert str(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth") in str(error.value)


def test_own_checkpoint_of_an_encoder_in_either_format(tmp_path: Path) -> None:
    torch.manual_seed(3)
    own = create_encoder("mobilenet_v3_small")
    torch.save({"state_dict": own.state_dict()}, tmp_path / "own.pt")
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    for file in ("own.pt", "own.safetensors"):
        loaded = create_encoder("mobilenet_v3_small", pretrained=tmp_path / file)
        for key, value in own.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key


def test_own_checkpoint_of_a_model_with_other_classes(tmp_path: Path) -> None:
    own = create_model("enet", num_classes=5)
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    same = create_model("enet", num_classes=5, pretrained=tmp_path)
    assert torch.equal(same.classifier.weight, own.classifier.weight)  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="classifier.weight"):
        other = create_model("enet", num_classes=7, pretrained=tmp_path / "model.safetensors")
    assert torch.equal(other.initial.conv.weight, own.initial.conv.weight)  # type: ignore[union-attr]


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        create_encoder("resnet18", pretrained=tmp_path / "absent.pt")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no zip file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        create_encoder("resnet18", pretrained=broken)
    torch.save(trunk("resnet18").state_dict(), tmp_path / "r18.pt")
    with pytest.raises(CheckpointError, match="lacks"):
        create_encoder("resnet50", pretrained=tmp_path / "r18.pt")
    with pytest.raises(CheckpointError, match="not of this architecture"):
        create_model("enet", num_classes=2, pretrained=tmp_path / "r18.pt")


def test_bad_options() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        create_encoder("resnet81")
    with pytest.raises(OptionError, match="output_stride is 4"):
        create_encoder("resnet18", output_stride=4)


def test_timm_backbone() -> None:
    pytest.importorskip("timm")
    encoder = create_encoder("timm:resnet10t", in_channels=4, output_stride=16).eval()
    features = encoder(torch.randn(1, 4, 64, 64))
    assert encoder.strides == [64 // f.shape[2] for f in features]
    assert encoder.out_channels == [f.shape[1] for f in features]
    model = create_model("unet", num_classes=2, backbone="timm:convnext_atto", norm="batch")
    assert model(torch.randn(2, 3, 40, 50))["out"].shape == (2, 2, 40, 50)
    with pytest.raises(OptionError, match="timm cannot build 'no_such_net'"):
        create_encoder("timm:no_such_net")
