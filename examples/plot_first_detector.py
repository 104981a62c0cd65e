"""
A first detector
================

Learn from images of good parts, then find defective ones, and where the
defects are.

Images are generated and the network is the small one that comes with the
package, so that this page needs no download. Generated images show how the
package works; they say nothing about its accuracy on real parts.
"""

# %%
# Images of a product
# -------------------
#
# :func:`~skpbas.datasets.make_inspection_images` simulates the camera: all
# images show one product, and the defective ones have exact masks.

from skpbas.datasets import make_inspection_images

data = make_inspection_images(
    32, 10, kind="brushed_metal", size=128, random_state=0
)
good = data.images[:24]
images, labels, masks = data.images[24:], data.labels[24:], data.masks[24:]
print(
    f"{len(good)} good images to learn from; {(labels == 1).sum()} good "
    f"and {(labels == -1).sum()} defective to check"
)

# %%
# Fit
# ---
#
# A detector is a scikit-learn estimator: parameters in the constructor, then
# ``fit``, then attributes that end in an underscore.

from skpbas import PBASDetector

detector = PBASDetector(
    "embedded", image_size=128, device="cpu", random_state=0
)
detector.fit(good)
losses = detector.loss_curve_["loss"]
print(
    f"{detector.n_iter_} epochs on {detector.device_}; "
    f"loss {losses[0]:.3f} in the first, {losses[-1]:.3f} in the last"
)

# %%
# Score and decide
# ----------------
#
# ``score_samples`` is higher for normal images. ``decision_function``
# subtracts the threshold, which is set from the normal images alone, and
# ``predict`` returns its sign: +1 normal, -1 anomalous.

margins = detector.decision_function(images)
decisions = detector.predict(images)
rows = zip(data.defect_types[24:], decisions, margins, strict=True)
for kind, label, margin in rows:
    print(f"{kind:14} {label:+d} {margin:+.3f}")

# %%
# Localize
# --------
#
# Anomaly maps are in [0, 1]; higher is more anomalous.

maps = detector.anomaly_map(images)
print(maps.shape, maps.dtype)

# %%
# Measure
# -------
#
# Two metrics for images and three for pixels; they expect scores that are
# higher for anomalous images.

from skpbas.metrics import image_ap, image_auroc, pixel_metrics

metrics = {
    "image_auroc": image_auroc(labels, -margins),
    "image_ap": image_ap(labels, -margins),
}
metrics |= pixel_metrics(masks, maps)
for name, value in metrics.items():
    print(f"{name:12} {value:.3f}")

# %%
# Look
# ----

import matplotlib.pyplot as plt

shown = [8, 9, 11, 0]  # a scratch, a stain, a missing piece, and a good one
scale = {"vmin": float(maps.min()), "vmax": float(maps.max())}
figure, axes = plt.subplots(
    len(shown), 4, figsize=(8, 2.1 * len(shown)), layout="constrained"
)
for row, index in zip(axes, shown, strict=True):
    row[0].imshow(images[index])
    row[1].imshow(masks[index], cmap="gray", vmin=0, vmax=1)
    row[2].imshow(maps[index], cmap="inferno", **scale)
    row[3].imshow(images[index])
    row[3].imshow(maps[index], cmap="inferno", alpha=0.5, **scale)
    row[0].set_ylabel(data.defect_types[24 + index])
titles = ("image", "mask", "map", "overlay")
for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
plt.show()
