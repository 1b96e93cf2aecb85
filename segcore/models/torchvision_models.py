"""torchvision's own models under our registry: "torchvision:<builder>"."""

from collections.abc import Callable

from torch import nn

from segcore.encoders.first_conv import adapt_first_conv
from segcore.errors import unknown_name

BUILDERS = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
)
INSTANCE_BUILDERS = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")


def torchvision_builder(name: str) -> Callable[..., nn.Module]:
    """Our builder around the torchvision builder `name`.

    Raises:
        UnknownNameError: torchvision has no semantic or instance model of this name.
    """
    if name in INSTANCE_BUILDERS:
        return _instance_builder(name)
    if name not in BUILDERS:
        known = [f"torchvision:{builder}" for builder in (*BUILDERS, *INSTANCE_BUILDERS)]
        raise unknown_name("model", f"torchvision:{name}", known)

    def plain(*, num_classes: int, in_channels: int = 3, pretrained: bool = False) -> nn.Module:
        return _build(name, num_classes, in_channels, pretrained, None)

    def with_aux(
        *,
        num_classes: int,
        in_channels: int = 3,
        pretrained: bool = False,
        aux_loss: bool = False,
    ) -> nn.Module:
        return _build(name, num_classes, in_channels, pretrained, aux_loss)

    return plain if name.startswith("lraspp") else with_aux


def _build(
    name: str, num_classes: int, in_channels: int, pretrained: bool, aux_loss: bool | None
) -> nn.Module:
    """Their model, backbone weights through torch.hub's cache, first layer for `in_channels`."""
    import torchvision

    options = {} if aux_loss is None else {"aux_loss": aux_loss}
    model: nn.Module = torchvision.models.get_model(
        name,
        weights=None,
        weights_backbone="DEFAULT" if pretrained else None,
        num_classes=num_classes,
        **options,
    )
    adapt_first_conv(model, in_channels, keep_weights=pretrained)
    return model


def _instance_builder(name: str) -> Callable[..., nn.Module]:
    def plain(
        *,
        num_classes: int,
        in_channels: int = 3,
        pretrained: bool = False,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_batch_size_per_image: int = 512,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
    ) -> nn.Module:
        options = dict(locals())
        from segcore.models.torchvision_detection import build

        common = ("name", "num_classes", "in_channels", "pretrained")
        others = {key: value for key, value in options.items() if key not in common}
        return build(name, num_classes, in_channels, pretrained, others)

    return plain
