"""The registry of architectures: a new one is one file and one line of `MODELS`."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from segcore.encoders.weights import load_checkpoint
from segcore.errors import OptionError, unknown_name
from segcore.models.card import ModelCard

__all__ = ["MODELS", "ModelCard", "create_model", "list_models", "model_card", "model_options"]

MODELS: dict[str, str] = {
    "conv_stack": "segcore.models.semantic.conv_stack:conv_stack",
    "decouplednet": "segcore.models.semi_supervised.decouplednet:decouplednet",
    "deconvnet": "segcore.models.semantic.deconvnet:deconvnet",
    "deeplab_largefov": "segcore.models.semantic.deeplab_largefov:deeplab_largefov",
    "deepmask": "segcore.models.instance.deepmask:deepmask",
    "dilated": "segcore.models.semantic.dilated:dilated",
    "enet": "segcore.models.semantic.enet:enet",
    "fc_densenet103": "segcore.models.semantic.fc_densenet:fc_densenet103",
    "fc_densenet56": "segcore.models.semantic.fc_densenet:fc_densenet56",
    "fc_densenet67": "segcore.models.semantic.fc_densenet:fc_densenet67",
    "fcis": "segcore.models.instance.fcis:fcis",
    "fcn16s": "segcore.models.semantic.fcn:fcn16s",
    "fcn32s": "segcore.models.semantic.fcn:fcn32s",
    "fcn8s": "segcore.models.semantic.fcn:fcn8s",
    "fcn_small": "segcore.models.semantic.compact:fcn_small",
    "gan": "segcore.models.semi_supervised.gan:gan",
    "gfrnet": "segcore.models.semantic.gfrnet:gfrnet",
    "instance_fcn": "segcore.models.instance.instance_fcn:instance_fcn",
    "linknet": "segcore.models.semantic.linknet:linknet",
    "mask_rcnn": "segcore.models.instance.mask_rcnn:mask_rcnn",
    "mnc": "segcore.models.instance.mnc:mnc",
    "panoptic_fpn": "segcore.models.panoptic.panoptic_fpn:panoptic_fpn",
    "pspnet": "segcore.models.semantic.pspnet:pspnet",
    "refinenet": "segcore.models.semantic.refinenet:refinenet",
    "residual_unet": "segcore.models.semantic.residual_unet:residual_unet",
    "segnet": "segcore.models.semantic.segnet:segnet",
    "segnet_basic": "segcore.models.semantic.segnet:segnet_basic",
    "sliding_window": "segcore.models.semantic.sliding_window:sliding_window",
    "unet": "segcore.models.semantic.unet:unet",
    "unet3d": "segcore.models.semantic.unet3d:unet3d",
    "unet_small": "segcore.models.semantic.compact:unet_small",
    "watershed": "segcore.models.instance.watershed:watershed",
}

TORCHVISION = "torchvision:"
COMMON = ("num_classes", "in_channels", "pretrained")


def list_models(task: str | None = None) -> list[str]:
    """Names that `create_model` takes, sorted; `torchvision:<builder>` works beside them.

    Args:
        task: keep the architectures of one task ("semantic", "instance", ...).
    """
    return sorted(name for name, path in MODELS.items() if task in (None, path.split(".")[2]))


def model_card(name: str) -> ModelCard:
    """Facts of the architecture `name`.

    Raises:
        UnknownNameError: no architecture has this name.
    """
    module, _ = _locate(name)
    card: ModelCard = module.CARDS[name]
    return card


def model_options(name: str) -> dict[str, Any]:
    """Options of the architecture `name` with their default values.

    Raises:
        UnknownNameError: no architecture has this name.
    """
    parameters = inspect.signature(_builder(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in COMMON}


def create_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool | str | Path = False,
    **options: Any,
) -> nn.Module:
    """Build an architecture by its registry name.

    Args:
        name: one of `list_models()`, or "torchvision:<builder>".
        num_classes: channels of the logits, at least 1; of instance and panoptic models the
            things with background, at least 2.
        in_channels: channels of the images, at least 1.
        pretrained: True loads ImageNet weights into the backbone; a path loads your checkpoint
            (safetensors or a state_dict).
        options: keyword options of the architecture; `model_options` lists them.

    Returns:
        For semantic models a module of images [N, in_channels, H, W] (H, W >= 32) to
        {"out": logits [N, num_classes, H, W], optional "aux"}. For instance and panoptic ones
        torchvision's detection convention: a list of images [in_channels, H, W] and a list of
        targets to a dict of losses in training, a list of detections in eval.

    Raises:
        UnknownNameError: no architecture has this name.
        OptionError: an option or value that the architecture does not have.
    """
    builder = _builder(name)
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{what} is {value!r}: give an integer of at least 1")
    known = model_options(name)
    for option in options:
        if option not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise OptionError(f"{name} has no option {option!r}; its options: {listed}")
    arguments = {"num_classes": num_classes, "in_channels": in_channels, **options}
    if pretrained is True:
        if "pretrained" not in inspect.signature(builder).parameters:
            raise OptionError(f"{name} has no published weights: set pretrained to false or a path")
        arguments["pretrained"] = True
    model = builder(**arguments)
    if pretrained and pretrained is not True:
        load_checkpoint(model, Path(pretrained))
    return model


def _builder(name: str) -> Callable[..., nn.Module]:
    if name.startswith(TORCHVISION):
        from segcore.models.torchvision_models import torchvision_builder

        return torchvision_builder(name.removeprefix(TORCHVISION))
    module, attribute = _locate(name)
    builder: Callable[..., nn.Module] = getattr(module, attribute)
    return builder


def _locate(name: str) -> tuple[Any, str]:
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    path, _, attribute = MODELS[name].partition(":")
    return importlib.import_module(path), attribute
