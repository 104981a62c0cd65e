"""
Compare ways of synthesis
=========================

A small version of the paper's ablation: the same images and centers, and
anomalies that are synthesized along the ray from center to feature, with
Gaussian noise, or not at all (ABL alone). Beside them, the default of the
package: along the ray, with a score that combines the discriminator and the
distance to exemplars.

Images are generated and the network is the small one that comes with the
package, so that this page needs no download. On real parts, the paper compares
ways of synthesis (:doc:`/method`, "Figures of the paper"), and
:doc:`/experiments` the scores.
"""

# %%
# Four detectors, two products
# ----------------------------
#
# ``patch_score="discriminator"`` is the paper's score. It compares the
# discriminators, which are trained on the synthetic anomalies. Without
# synthesis there is none, and the score of a patch is its distance to the
# nearest center.

# sphinx_gallery_thumbnail_number = 2

from skpbas import PBASDetector
from skpbas.datasets import make_inspection_images

kinds = ["hex_nut", "brushed_metal"]
products = {
    kind: make_inspection_images(34, 12, kind=kind, size=96, random_state=0)
    for kind in kinds
}
ways = {
    "ABL alone": {"synthesis": None, "patch_score": "distance"},
    "Gaussian": {
        "synthesis": "gaussian",
        "patch_score": "discriminator",
    },
    "ray": {"synthesis": "ray", "patch_score": "discriminator"},
    "default": {"synthesis": "ray", "patch_score": "fused"},
}
detectors = {}
for kind, data in products.items():
    for name, parameters in ways.items():
        detector = PBASDetector(
            "embedded",
            image_size=96,
            max_epochs=30,
            device="cpu",
            random_state=0,
            **parameters,
        )
        detectors[kind, name] = detector.fit(data.images[:24])

# %%
# The losses of the four are not comparable, as their terms differ; their
# curves show whether the training has converged. ``loss_curve_`` has every
# term, and a callback sees them during the training: see :doc:`/callbacks`.

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name in ways:
    curve = detectors["hex_nut", name].loss_curve_["loss"]
    axis.plot(range(1, len(curve) + 1), curve, label=name)
axis.set(xlabel="epoch", ylabel="loss, hex_nut", yscale="log")
axis.legend()
plt.show()

# %%
# Measure
# -------

import numpy as np

from skpbas.scorers import AnomalyScorer

measure = AnomalyScorer(("image_auroc", "pixel_pro"))
print("product        way        image AUROC    PRO")
pro = {name: [] for name in ways}
for (kind, name), detector in detectors.items():
    data = products[kind]
    found = measure(detector, data.images[24:], data.masks[24:])
    pro[name].append(found["pixel_pro"])
    print(
        f"{kind:13}  {name:9}  {found['image_auroc']:11.3f}  "
        f"{found['pixel_pro']:.3f}"
    )
for name, values in pro.items():
    print(f"mean PRO       {name:9}               {np.mean(values):.3f}")

# %%
# What this shows, and what it does not
# -------------------------------------
#
# A discriminator alone says little about what is far from all it has seen.
# Combined with the distance to exemplars it locates better, here and on real
# parts, on every category that was measured (:doc:`/experiments`, "The
# defaults on fresh seeds").
#
# These are two of four products that were tried, with two seeds each. The
# default was ahead of the paper's score, in PRO, in all eight cases, and ahead
# of the distance to centers in four: behind it on screws in any orientation,
# in both, and once each on nuts (as here) and fabric. 24 images of 96 pixels
# show little of a screw. On real screws of 256 pixels, with all images, the
# distance to centers has a PRO of 0.80 to 0.83, and the default of 0.96
# (``README.md``).
#
# Nor do 22 images rank the ray and Gaussian noise. The paper does, on MVTec
# AD, with a PRO of 97.3 against 91.9 (its Table V).

# %%
# Look
# ----

data = products["hex_nut"]
images, masks = data.images[24:], data.masks[24:]
shown = [10, 11, 12, 0]  # three defective ones and a good one
figure, axes = plt.subplots(
    len(shown), 6, figsize=(10, 1.8 * len(shown)), layout="constrained"
)
for row, index in zip(axes, shown, strict=True):
    row[0].imshow(images[index])
    row[0].set_ylabel(data.defect_types[24 + index])
    row[1].imshow(masks[index], cmap="gray", vmin=0, vmax=1)
for column, name in zip(axes[:, 2:].T, ways, strict=True):
    maps = detectors["hex_nut", name].anomaly_map(images)
    scale = {"vmin": float(maps.min()), "vmax": float(maps.max())}
    for axis, index in zip(column, shown, strict=True):
        axis.imshow(maps[index], cmap="inferno", **scale)
for axis, title in zip(axes[0], ("image", "mask", *ways), strict=True):
    axis.set_title(title)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
plt.show()
