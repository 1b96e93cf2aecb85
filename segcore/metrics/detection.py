"""COCO's average precision, and average recall of proposals, streamed.

Reference: Lin et al. 2014, arXiv:1405.0312; Hosang et al. 2016, arXiv:1502.05082 (recall).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segcore.errors import OptionError
from segcore.metrics.average_precision import precision_table, summary, weighted_ar
from segcore.metrics.matching import InstanceRecord, IouType, match_image
from segcore.metrics.records import RecordMetric, mean_defined


class MeanAveragePrecision(RecordMetric[InstanceRecord]):
    """COCO's average precision and recall over everything that was added.

    Predictions and targets are dicts of an image, as torchvision's detection models give and take
    them (`match_image` says which keys). Crowds are regions to ignore. The numbers equal those of
    COCOeval on the same objects.

    Args:
        iou_type: "segm" compares masks, "bbox" boxes.
    """

    def __init__(self, iou_type: IouType = "segm") -> None:
        if iou_type not in ("segm", "bbox"):
            raise OptionError(f"iou_type is {iou_type!r}: give 'segm' or 'bbox'")
        super().__init__(InstanceRecord)
        self.iou_type = iou_type

    def match(self, pred: Mapping[str, Any], target: Mapping[str, Any]) -> InstanceRecord:
        """The record of one image."""
        return match_image(pred, target, iou_type=self.iou_type)

    def compute(self) -> dict[str, Any]:
        """The figures of what was added so far.

        Returns:
            stats: float64 [12] in COCO's order, -1 where there is no object
            ap, ap50, ap75, ap_small, ap_medium, ap_large, ar_1, ar_10, ar_100, ar_small,
                ar_medium, ar_large: the same as floats, NaN where there is no object
            ap_per_class, ap50_per_class: by label, of the classes that have objects
        """
        table = precision_table(self.records, np.ones((1, len(self.records))))
        figures: dict[str, Any] = {key: float(value[0]) for key, value in summary(table).items()}
        stats = np.nan_to_num(np.array(list(figures.values())), nan=-1.0)
        labels, ap = table.labels.tolist(), table.ap[0, :, 0]  # [K, T]
        return figures | {
            "stats": stats,
            "ap_per_class": dict(zip(labels, mean_defined(ap).tolist(), strict=True)),
            "ap50_per_class": dict(zip(labels, ap[:, 0].tolist(), strict=True)),
        }


class AverageRecall(RecordMetric[InstanceRecord]):
    """Recall of class-agnostic proposals, averaged over IoU 0.5:0.95, over everything added.

    Args:
        iou_type: "segm" compares masks, "bbox" boxes.
    """

    limits = (10, 100, 1000)

    def __init__(self, iou_type: IouType = "segm") -> None:
        if iou_type not in ("segm", "bbox"):
            raise OptionError(f"iou_type is {iou_type!r}: give 'segm' or 'bbox'")
        super().__init__(InstanceRecord)
        self.iou_type = iou_type

    def match(self, pred: Mapping[str, Any], target: Mapping[str, Any]) -> InstanceRecord:
        """The record of one image; its labels do not matter."""
        return match_image(
            pred,
            target,
            iou_type=self.iou_type,
            max_detections=max(self.limits),
            class_agnostic=True,
        )

    def compute(self) -> dict[str, float]:
        """ar_10, ar_100, ar_1000, and with 1000 ar_small, ar_medium, ar_large; NaN of no object."""
        figures = weighted_ar(self.records, np.ones((1, len(self.records))), limits=self.limits)
        return {name: float(value[0]) for name, value in figures.items()}
