"""Patch classifier: the class of the centre pixel of a 95 x 95 window, and its convolutional twin.

Reference: Ciresan, Giusti, Gambardella & Schmidhuber 2012, Deep Neural Networks Segment Neuronal
Membranes in Electron Microscopy Images, NIPS (network N4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import ShapeError
from segcore.models.blocks import check_images, init_he, reflect_pad
from segcore.models.card import ModelCard

CARDS = {
    "sliding_window": ModelCard(
        name="sliding_window",
        title="Sliding-window patch classifier (N4)",
        paper="Ciresan, Giusti, Gambardella & Schmidhuber 2012, Deep Neural Networks Segment "
        "Neuronal Membranes in Electron Microscopy Images, NIPS 25",
        year=2012,
        task="semantic",
        parameters=224_645,
        published={"isbi_em_warping_error": 0.000420, "isbi_em_rand_error": 0.0504},
        notes="219,290 parameters at 1 channel and 2 classes. ReLU in place of the original's "
        "activation.",
    )
}
WINDOW = 95
KERNELS = (4, 5, 4, 4)
WIDTH = 48
HIDDEN = 200
CLASSIFIER_SIDE = 3  # side of the map that the fully connected layer sees


class SlidingWindow(nn.Module):
    """Four times [convolution, ReLU, max-pooling by 2], then two fully connected layers.

    `classify` is the paper's network: one window in, one vector of logits out. `forward` is the
    same function for every pixel at once: each pooling keeps its resolution, and every later tap
    is taken further apart instead, so that all windows share their computation.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels if index == 0 else WIDTH, WIDTH, kernel)
            for index, kernel in enumerate(KERNELS)
        )
        # The fully connected layers, held as the convolutions that they are.
        self.hidden = nn.Conv2d(WIDTH, HIDDEN, CLASSIFIER_SIDE)
        self.classifier = nn.Conv2d(HIDDEN, num_classes, 1)
        init_he(self)

    def classify(self, windows: Tensor) -> Tensor:
        """Logits of the centre pixel of each window.

        Args:
            windows: float [N, in_channels, 95, 95]

        Returns:
            [N, num_classes]

        Raises:
            ShapeError: windows of another size.
        """
        if tuple(windows.shape[1:]) != (self.in_channels, WINDOW, WINDOW):
            raise ShapeError(
                f"windows have shape {tuple(windows.shape)}: give [N, {self.in_channels}, "
                f"{WINDOW}, {WINDOW}]"
            )
        x = windows
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return torch.flatten(self.classifier(F.relu(self.hidden(x))), 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        x = reflect_pad(x, WINDOW // 2)
        dilation = 1
        for conv in self.convs:
            x = F.max_pool2d(_apart(conv, x, dilation), 2, stride=1, dilation=dilation)
            dilation *= 2
        x = _apart(self.hidden, x, dilation)
        return {"out": self.classifier(x)}


def _apart(conv: nn.Module, x: Tensor, dilation: int) -> Tensor:
    """The convolution with its taps `dilation` apart, then ReLU."""
    return F.relu(F.conv2d(x, conv.weight, conv.bias, dilation=dilation))  # type: ignore[arg-type]


def sliding_window(*, num_classes: int, in_channels: int = 3) -> SlidingWindow:
    """Patch classifier N4 and its convolutional twin.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
    """
    return SlidingWindow(in_channels, num_classes)
