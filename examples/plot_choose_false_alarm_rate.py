"""
Choose a false alarm rate
=========================

How many good parts may be rejected is a business decision, not a property of
the method. :class:`~skpbas.calibration.ConformalThreshold` takes it as a
number and guarantees it, whatever the distribution of the scores: it holds
some normal images out of training and sets the threshold by their scores.

Images are generated and the network is the small one that comes with the
package, so that this page needs no download. Generated images show how the
package works; they say nothing about its accuracy on real parts.
"""

# %%
# Images
# ------
#
# Normal images to learn from, and normal and defective ones that are not used
# until the end.

from skpbas.datasets import make_inspection_images

data = make_inspection_images(
    360, 40, kind="brushed_metal", size=64, random_state=0
)
good = data.images[:200]
unseen, defective = data.images[200:360], data.images[360:]

# %%
# At most one alarm in twenty good parts
# --------------------------------------
#
# Half of the normal images train the detector, the other half set the
# threshold. The guarantee holds on average over the choice of these images; a
# single choice varies around it, less so with more images. The distribution of
# this variation is known as well.

from scipy.stats import beta

from skpbas import PBASDetector
from skpbas.calibration import ConformalThreshold

detector = PBASDetector(
    "embedded",
    image_size=64,
    max_epochs=12,
    device="cpu",
    random_state=0,
)
inspector = ConformalThreshold(
    detector, max_false_alarm_rate=0.05, random_state=0
)
inspector.fit(good)
n = len(inspector.calibration_scores_)
rank = round(inspector.false_alarm_rate_ * (n + 1))
low, high = beta(rank, n + 1 - rank).interval(0.9)
print(
    f"{n} images promise {rank / (n + 1):.2%} false alarms; "
    f"nine choices in ten have {low:.1%} to {high:.1%}"
)
false_alarms = (inspector.predict(unseen) == -1).mean()
detections = (inspector.predict(defective) == -1).mean()
print(f"flagged of {len(unseen)} unseen good images: {false_alarms:.1%}")
print(f"flagged of {len(defective)} defective images: {detections:.1%}")

# %%
# Too few images for a rate
# -------------------------
#
# n held-out images can guarantee a rate of 1 / (n + 1) and no less. An
# impossible rate is refused before training.

from skpbas.errors import CalibrationError

try:
    ConformalThreshold(detector, max_false_alarm_rate=0.001).fit(good)
except CalibrationError as error:
    print(error)

# %%
# p-values
# --------
#
# A p-value tells how unusual an image would be if it were normal: a number for
# a report, or to sort by.

p_values = inspector.p_values(defective[:5])
for kind, p in zip(data.defect_types[360:365], p_values, strict=True):
    print(f"{kind:14} p = {p:.3f}")

# %%
# Other rates without training again
# ----------------------------------
#
# In a ``FrozenEstimator`` a fitted detector is not trained again, and all
# images calibrate: they must differ from those it was trained on.

from sklearn.frozen import FrozenEstimator

frozen = FrozenEstimator(inspector.detector_)
fresh, tested = unseen[:100], unseen[100:]
rates = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3]
alarms, found = [], []
for rate in rates:
    other = ConformalThreshold(frozen, max_false_alarm_rate=rate).fit(fresh)
    alarms.append((other.predict(tested) == -1).mean())
    found.append((other.predict(defective) == -1).mean())

# %%
# False alarms and detections at each rate:

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.plot(rates, rates, color="gray", linestyle="--", label="guaranteed")
axes.plot(
    rates, alarms, marker="o", label=f"normal images flagged, of {len(tested)}"
)
axes.plot(
    rates,
    found,
    marker="s",
    label=f"defective images flagged, of {len(defective)}",
)
axes.set(
    xscale="log",
    xlabel="max_false_alarm_rate",
    ylabel="share flagged",
    xticks=rates,
    xticklabels=rates,
)
axes.legend()
plt.show()
