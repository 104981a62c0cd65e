"""
Look at a detector
==================

The displays of ``skpbas.inspection``: where images are defective, how far
their scores are from the threshold, what it costs, and what training did.

They need matplotlib: ``pip install "skpbas[plot]"``.
"""

# %%
# A detector
# ----------
#
# Generated images, and the small network that comes with the package. They
# show what the pictures mean, not what to expect of real parts.

from skpbas import PBASDetector
from skpbas.datasets import make_inspection_images

data = make_inspection_images(56, 20, kind="hex_nut", size=96, random_state=0)
good = data.images[:32]
images, labels = data.images[32:], data.labels[32:]
masks = [mask if mask.any() else None for mask in data.masks[32:]]
detector = PBASDetector(
    "embedded", image_size=96, max_epochs=24, device="cpu", random_state=0
)
detector.fit(good)

# %%
# Where
# -----
#
# White: where the map is above ``map_threshold_``. All pictures of a detector
# have one scale, with the threshold in its middle, so a good part stays dark.

import matplotlib.pyplot as plt

from skpbas.inspection import AnomalyMapDisplay

shown = [0, 25, 28, 33]
AnomalyMapDisplay.from_estimator(
    detector,
    images[shown],
    [masks[i] for i in shown],
    names=[data.defect_types[32 + i] for i in shown],
    n_columns=2,
)
plt.show()

# %%
# How far from the threshold
# --------------------------
#
# One row a group, one tick an image. What is left of the dashed line is
# flagged; what is in the band beside it is "unsure".

from skpbas.inspection import ScoreDistributionDisplay

ScoreDistributionDisplay.from_estimator(detector, images, labels)
plt.show()

# %%
# What it costs
# -------------
#
# How many defective images are found at which false-alarm rate, and how much
# of the defects at which rate of pixels. The dots are the detector's own
# thresholds.

from skpbas.inspection import ProCurveDisplay, RocCurveDisplay

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 4), layout="constrained"
)
RocCurveDisplay.from_estimator(detector, images, labels, ax=left)
ProCurveDisplay.from_estimator(
    detector, images, masks, fpr_scale="symlog", ax=right
)
plt.show()

# %%
# What training did
# -----------------
#
# The terms of the loss, and the radius r: the mean distance of good features
# to their centers.

from skpbas.inspection import TrainingDisplay

TrainingDisplay.from_estimator(detector)
plt.show()

# %%
# Features around their centers. Every point is at its true distance from the
# nearest center, in the middle; only directions are projected.

from skpbas.inspection import BoundaryDisplay

BoundaryDisplay.from_estimator(detector, images, masks, random_state=0)
plt.show()

# %%
# Distances to mean centers, to aligned ones, and after training.

from skpbas.inspection import CenterDisplay

CenterDisplay.from_estimator(detector, good)
plt.show()
