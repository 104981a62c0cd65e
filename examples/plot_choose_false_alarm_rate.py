"""
Choose a false alarm rate
=========================

How many good parts may be rejected is a business decision, not a property of
the method. :class:`~skpbas.calibration.ConformalThreshold` takes it as a
number and guarantees it on average, whatever the distribution of the scores:
it holds some normal images out of training and sets the threshold by their
scores.

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
    f"{n} images: {rank / (n + 1):.2%} false alarms on average; "
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
other = ConformalThreshold(frozen, max_false_alarm_rate=0.1).fit(fresh)
print(f"guaranteed: {other.false_alarm_rate_:.1%}")
print(f"flagged of {len(tested)}: {(other.predict(tested) == -1).mean():.1%}")

# %%
# What is guaranteed, and what a single draw shows
# ------------------------------------------------
#
# The rate is guaranteed on average over the images that set the threshold.
# A single set of 100 may come out above it, and 60 tested images are a coarse
# measure besides. To see both, the 160 scores are divided anew 1,000 times:
# 100 set the threshold, as ``ConformalThreshold`` does, and 60 measure it.

import numpy as np

scores = inspector.score_samples(unseen)
defective_scores = inspector.score_samples(defective)
rates = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3]
alarms = np.empty((len(rates), 1000))
found = np.empty((len(rates), 1000))
rng = np.random.default_rng(0)
for draw in range(1000):
    drawn = rng.permutation(scores)
    lowest_first = np.sort(drawn[:100])
    for i, rate in enumerate(rates):
        threshold = lowest_first[int(rate * 101) - 1]
        alarms[i, draw] = (drawn[100:] < threshold).mean()
        found[i, draw] = (defective_scores < threshold).mean()
for rate, shares in zip(rates, alarms, strict=True):
    low, high = np.quantile(shares, [0.05, 0.95])
    print(
        f"at most {rate:.0%}: {shares.mean():.1%} on average, "
        f"{low:.1%} to {high:.1%} in nine draws of ten"
    )

# %%
# On average the alarms stay below the line. Whoever needs that of his own set
# of images, with confidence, aims lower or holds out more of them.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.plot(rates, rates, color="gray", linestyle="--", label="guaranteed")
axes.fill_between(
    rates,
    *np.quantile(alarms, [0.05, 0.95], axis=1),
    alpha=0.2,
    label="nine draws of ten",
)
axes.plot(rates, alarms.mean(1), marker="o", label="good images flagged")
axes.plot(rates, found.mean(1), marker="s", label="defective images flagged")
axes.set(
    xscale="log",
    xlabel="max_false_alarm_rate",
    ylabel="share flagged, mean of 1,000 draws",
    xticks=rates,
    xticklabels=rates,
)
axes.legend()
plt.show()
