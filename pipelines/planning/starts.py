"""What each kind of task starts from: the architecture that learns fastest from few pictures.

Of the architectures tried in the first minutes on two cores; docs/plan.md has the figures.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipelines.params.schema import OWN


class Start(NamedTuple):
    """An architecture, its options, and why; what is not named is the architecture's own.

    Args:
        model: name of the architecture.
        why: it.
        options: by name, (value, reason).
        loss: name of the loss; OWN where the model has its own.
        batch: images of a step, at most.
        progressive: share of the run at half size; 0: none, or not tried.
    """

    model: str
    why: str
    options: Mapping[str, tuple[Any, str]]
    loss: str
    batch: int
    progressive: float = 0.0


_LIGHT = ("resnet18", "light enough for minutes")
_LIGHT_HEADS: dict[str, tuple[Any, str]] = {
    "fpn_channels": (128, "half of the paper's: light enough for minutes"),
    "box_hidden": (512, "half of the paper's: light enough for minutes"),
    "box_batch_size_per_image": (128, "enough for a crop"),
    "rpn_pre_nms_top_n_train": (1000, "enough for a crop"),
    "rpn_post_nms_top_n_train": (500, "enough for a crop"),
}

STARTS: dict[str, Start] = {
    "semantic": Start(
        "unet",
        "U-Net over a ResNet-18: the best of the architectures tried in the first minutes",
        {
            "backbone": _LIGHT,
            "norm": ("batch", "in the decoder too: learns faster"),
            "dropout": (0.0, "minutes are too short to overfit"),
            "base_channels": (48, "three quarters of the paper's: a quarter more steps"),
            "upsample": ("nearest", "all channels reach the decoder's convolutions"),
            "head_kernel": (3, "logits grow faster under Adam, thin things first"),
        },
        "dice_ce",
        8,
        progressive=0.5,
    ),
    "instance": Start(
        "mask_rcnn",
        "Mask R-CNN on a light pyramid: of nuclei, AP50 of 0.75 in 15 minutes of one core",
        {"backbone": _LIGHT, **_LIGHT_HEADS},
        OWN,
        2,
    ),
    "panoptic": Start(
        "panoptic_fpn",
        "Mask R-CNN and a stuff head on one pyramid: the published baseline",
        {"backbone": _LIGHT, **_LIGHT_HEADS},
        OWN,
        2,
    ),
}


def start_of(task: str) -> Start:
    """What a kind of task starts from; one that is not known here, as semantic does."""
    return STARTS.get(task, next(iter(STARTS.values())))
