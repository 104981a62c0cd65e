"""Metrics of detection and localization: arrays in, floats out; higher scores mean more anomalous.

The pixel metrics are exact: every distinct score is a threshold, and tied scores form one step.
"""

from skpbas.metrics._image_metrics import image_ap, image_auroc, image_partial_auroc, miss_rate
from skpbas.metrics._pixel_metrics import pixel_ap, pixel_auroc, pixel_metrics, pixel_pro, pro_curve

__all__ = [
    "image_ap",
    "image_auroc",
    "image_partial_auroc",
    "miss_rate",
    "pixel_ap",
    "pixel_auroc",
    "pixel_metrics",
    "pixel_pro",
    "pro_curve",
]
