"""Trunks of torchvision's other classification networks, imported when one is asked for."""

from collections import OrderedDict

from torch import nn

GOOGLENET = (
    "conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3",
    "inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4",
    "inception5a", "inception5b",
)  # fmt: skip


def features(name: str) -> nn.Sequential:
    """The `features` of a torchvision network, randomly initialised as torchvision does."""
    import torchvision

    network = torchvision.models.get_model(name, weights=None).features
    trunk = nn.Sequential(OrderedDict(network.named_children()))
    if name.startswith("densenet"):
        # DenseNet's forward ends its features with this activation.
        trunk.add_module("relu5", nn.ReLU(inplace=True))
    return trunk


def googlenet(name: str) -> nn.Sequential:
    """GoogLeNet with batch norm, without auxiliary classifiers, pooling and fc."""
    import torchvision

    network = torchvision.models.get_model(
        name, weights=None, aux_logits=False, init_weights=False, transform_input=False
    )
    return nn.Sequential(OrderedDict((layer, getattr(network, layer)) for layer in GOOGLENET))
