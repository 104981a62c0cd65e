"""
Compare ways of synthesis
=========================

A small version of the paper's ablation: the same images and centers, and
anomalies that are synthesized along the ray from center to feature, with
Gaussian noise, or not at all (ABL alone).

Images are generated and the network is the small one that comes with the
package, so that this page needs no download. Generated images show how the
package works; the paper compares the three on real parts.
"""

# %%
# Three detectors
# ---------------
#
# ``patch_score="discriminator"`` is the paper's score. It compares the
# discriminators, which are trained on the synthetic anomalies. Without
# synthesis there is none, and the score of a patch is its distance to the
# nearest center.

from skpbas.datasets import make_inspection_images

data = make_inspection_images(34, 12, kind="hex_nut", size=96, random_state=0)
good = data.images[:24]
images, labels, masks = data.images[24:], data.labels[24:], data.masks[24:]

from skpbas import PBASDetector

ways = {"ABL alone": None, "Gaussian": "gaussian", "ray": "ray"}
detectors = {}
for name, synthesis in ways.items():
    detector = PBASDetector(
        "embedded",
        image_size=96,
        synthesis=synthesis,
        patch_score="discriminator",
        contamination=0.1,
        max_epochs=50,
        patches_per_step=512,
        device="cpu",
        random_state=0,
    )
    detectors[name] = detector.fit(good)
    terms = ", ".join(list(detector.loss_curve_)[1:])
    print(f"{name:10} terms of the loss: {terms}")

# %%
# The losses of the three are not comparable, as their terms differ; their
# curves show whether the training has converged. ``loss_curve_`` has every
# term, and a callback sees them during the training: see :doc:`/callbacks`.

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, detector in detectors.items():
    axis.plot(
        range(1, detector.n_iter_ + 1),
        detector.loss_curve_["loss"],
        label=name,
    )
axis.set(xlabel="epoch", ylabel="loss", yscale="log")
axis.legend()
plt.show()

# %%
# Measure
# -------
#
# One seed and 22 images show large differences only.

from skpbas.scorers import AnomalyScorer

measure = AnomalyScorer(("image_auroc", "pixel_auroc", "pixel_pro"))
print("synthesis   image AUROC  pixel AUROC    PRO")
for name, detector in detectors.items():
    found = measure(detector, images, masks)
    print(
        f"{name:10}  {found['image_auroc']:11.3f}  "
        f"{found['pixel_auroc']:11.3f}  {found['pixel_pro']:.3f}"
    )

# %%
# Look
# ----

shown = [10, 11, 12, 0]  # three defective ones and a good one
figure, axes = plt.subplots(
    len(shown), 5, figsize=(9, 1.9 * len(shown)), layout="constrained"
)
for row, index in zip(axes, shown, strict=True):
    row[0].imshow(images[index])
    row[0].set_ylabel(data.defect_types[24 + index])
    row[1].imshow(masks[index], cmap="gray", vmin=0, vmax=1)
for column, detector in zip(axes[:, 2:].T, detectors.values(), strict=True):
    maps = detector.anomaly_map(images)
    for axis, index in zip(column, shown, strict=True):
        axis.imshow(
            maps[index],
            cmap="inferno",
            vmin=float(maps.min()),
            vmax=float(maps.max()),
        )
for axis, title in zip(axes[0], ("image", "mask", *detectors), strict=True):
    axis.set_title(title)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
plt.show()
