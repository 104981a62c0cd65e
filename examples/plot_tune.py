"""
Tune two parameters
===================

Choose the anomaly degree ``alpha`` and the side ``patch_size`` of a patch's
neighborhood by cross-validation, then measure the choice on images that the
search has not seen.

Images are generated and the network is the small one that comes with the
package, so that this page needs no download. Generated images show how the
package works; which values are best for real parts is another matter:
:doc:`/model_selection` has a search on real bottles and screws.
"""

# %%
# Images for the search, images for the end
# -----------------------------------------
#
# Scores on the images that a parameter was selected on are too good. Some
# images are set aside for the end.

import numpy as np

from skpbas.datasets import make_inspection_images

data = make_inspection_images(34, 20, kind="hex_nut", size=96, random_state=0)
put_away = np.r_[24:34, 44:54]  # 10 good ones and 10 defective ones
for_search = np.setdiff1d(np.arange(len(data.images)), put_away)
print(
    f"search: {(data.labels[for_search] == 1).sum()} good, "
    f"{(data.labels[for_search] == -1).sum()} defective; "
    f"end: {(data.labels[put_away] == 1).sum()} good, "
    f"{(data.labels[put_away] == -1).sum()} defective"
)

# %%
# Search
# ------
#
# :class:`~skpbas.model_selection.NormalKFold` trains on normal images only and
# puts defective ones into every test fold. y is masks: the scorer reads their
# pixels, and training reads which images are normal. With ``memory`` every
# image passes through the network once, whatever the folds and candidates.

from tempfile import TemporaryDirectory

from sklearn.model_selection import GridSearchCV

from skpbas import PBASDetector
from skpbas.model_selection import NormalKFold
from skpbas.scorers import AnomalyScorer

with TemporaryDirectory() as memory:
    detector = PBASDetector(
        "embedded",
        image_size=96,
        max_epochs=15,
        memory=memory,
        device="cpu",
        random_state=0,
    )
    search = GridSearchCV(
        detector,
        {"alpha": [0.1, 0.3], "patch_size": [1, 3, 5]},
        scoring=AnomalyScorer(("image_auroc", "pixel_pro")),
        refit="pixel_pro",
        cv=NormalKFold(2),
        error_score="raise",
    )
    search.fit(data.images[for_search], data.masks[for_search])

# %%
# Results
# -------
#
# If candidates differ by less than their folds do, the search has not found a
# difference. Here the two values of alpha are equal, and ``patch_size=3``, the
# default, is ahead of both others in the harder fold.

results = search.cv_results_
print("alpha  patch_size  image AUROC    PRO    PRO by fold")
for i, candidate in enumerate(results["params"]):
    folds = " ".join(
        f"{results[f'split{k}_test_pixel_pro'][i]:.3f}" for k in range(2)
    )
    print(
        f"{candidate['alpha']:5}  {candidate['patch_size']:10}  "
        f"{results['mean_test_image_auroc'][i]:11.3f}  "
        f"{results['mean_test_pixel_pro'][i]:.3f}  {folds}"
    )
print("chosen:", search.best_params_)

# %%

import matplotlib.pyplot as plt

means = results["mean_test_pixel_pro"].reshape(2, 3)
figure, axis = plt.subplots(figsize=(4.4, 3), layout="constrained")
drawn = axis.imshow(means, cmap="viridis")
axis.set(
    xticks=range(3),
    xticklabels=[1, 3, 5],
    yticks=range(2),
    yticklabels=[0.1, 0.3],
)
axis.set(xlabel="patch_size", ylabel="alpha", title="PRO, mean of the folds")
for (i, j), value in np.ndenumerate(means):
    dark = value < (means.min() + means.max()) / 2
    color = "white" if dark else "black"
    axis.text(j, i, f"{value:.3f}", ha="center", va="center", color=color)
figure.colorbar(drawn)
plt.show()

# %%
# Measure the choice
# ------------------
#
# The search has fitted the selected candidate once more, on all of its normal
# images; the defective ones are left out of training. The images set aside
# measure it.

chosen = search.best_estimator_.set_params(memory=None)
measure = AnomalyScorer(("image_auroc", "pixel_pro"))
end = measure(chosen, data.images[put_away], data.masks[put_away])
print(f"learnt from {chosen.n_samples_fit_} good images")
for name, value in end.items():
    print(f"{name:12} {value:.3f}")

# %%
# It depends on the product
# -------------------------
#
# On generated wood of this size, the same search puts ``patch_size=1`` first,
# with a PRO of 0.935 against 0.845 for 3 (alpha 0.1): the finest detail counts
# there. On generated screws, too, though 24 of them are too few to rank images
# better than chance. On real bottles 1 and 3 were within 0.002, and on real
# screws 3 was first. That is what searches are for, and why the winner is
# measured on images that were put away.
