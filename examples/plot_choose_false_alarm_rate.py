"""
Choose a false alarm rate
=========================

How many good parts may be rejected is a decision, not a matter of the method.
:class:`~skpbas.calibration.ConformalThreshold` takes it as a number and keeps
to it, whatever the law of the scores: it holds some good images out of
training and lets their scores set the threshold.

Images are generated and the network is the small one that comes with the
package, so that this page needs no download. Generated images show how the
package works; they say nothing about its accuracy on real parts.
"""

# %%
# Images
# ------
#
# Good images to learn from, and good and defective ones that stay aside until
# the end.

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
# Half of the good images train the detector, the other half set the threshold.
# The promise is on the average over the choice of these images; a single
# choice scatters around it, the less the more images there are. How far is
# known too.

from scipy.stats import beta

from skpbas import PBASDetector
from skpbas.calibration import ConformalThreshold

detector = PBASDetector(
    "embedded",
    image_size=64,
    max_epochs=12,
    contamination=0.1,
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
# n held-out images can promise 1 / (n + 1) and no less. What is impossible is
# said before training.

from skpbas.errors import CalibrationError

try:
    ConformalThreshold(detector, max_false_alarm_rate=0.001).fit(good)
except CalibrationError as error:
    print(error)

# %%
# p-values
# --------
#
# A p-value tells how unusual an image would be for a good one: a number for a
# report, or to be sorted by.

p_values = inspector.p_values(defective[:5])
for kind, p in zip(data.defect_types[360:365], p_values, strict=True):
    print(f"{kind:14} p = {p:.3f}")

# %%
# Other rates without training again
# ----------------------------------
#
# In a ``FrozenEstimator`` a fitted detector stays as it is, and every image
# given calibrates: they must be others than those it was trained on.

from sklearn.frozen import FrozenEstimator

frozen = FrozenEstimator(inspector.detector_)
fresh, judged = unseen[:100], unseen[100:]
rates = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3]
alarms, found = [], []
for rate in rates:
    other = ConformalThreshold(frozen, max_false_alarm_rate=rate).fit(fresh)
    alarms.append((other.predict(judged) == -1).mean())
    found.append((other.predict(defective) == -1).mean())

# %%
# What each rate costs, and what it brings:

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.plot(rates, rates, color="grey", linestyle="--", label="promised")
axes.plot(
    rates, alarms, marker="o", label=f"good images flagged, of {len(judged)}"
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
