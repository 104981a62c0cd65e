"""Training images that look defective beside the others, found from features before anything is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skpbas._features.sampling import TrainingFeatures
from skpbas._training.exemplars import exemplars_of
from skpbas._training.settings import TrainingSettings
from skpbas._training.threshold import USUAL_STD, largest_usual, oddness
from skpbas.core.coreset import Coreset
from skpbas.core.devices import discriminator_precision
from skpbas.core.patch_scores import LARGEST, SMALLEST_DISTANCE, mean_of_largest

FEWEST_IMAGES = 8
"""Different images below which none is left out."""

_LARGEST_SHARE = 0.2  # more is not an exception
_MAX_ROUNDS = 4
_OF_ONE_PATCH = 4.0  # how much more the largest distance of one patch varies than the mean of many; in variances
_SHOWN_IMAGES = 10


def without_outliers(
    of_scales: Sequence[TrainingFeatures], settings: TrainingSettings, known: Coreset | None = None
) -> tuple[list[TrainingFeatures], dict[int, float]]:
    """Leave out training images that look defective beside the others.

    An image's distance is the mean of the largest distances of its patches to exemplars of other images, and it is left
    out if that lies far above those of most images. So is the distance that is left without the two images that are
    most like it, so that two that are alike do not hide each other. Without the images that were found, those that they
    hid become visible, so the search is repeated until it finds no more.

    Parameters
    ----------
    of_scales : sequence of TrainingFeatures
        The same images at each scale; the first scale decides.
    settings : TrainingSettings
    known : Coreset or None, default=None
        Exemplars of earlier images, at the first scale, which count as others.

    Returns
    -------
    list of TrainingFeatures
        Without these images.
    dict of int to float
        The images that were left out, by their index among all, and how many times as large as usual their distance is.
    """
    if not settings.exclude_outliers:
        return list(of_scales), {}
    features = of_scales[0]
    kept, found = torch.arange(features.n_images), dict[int, float]()
    for _ in range(_MAX_ROUNDS):
        if len(features.image_numbers.unique()) < FEWEST_IMAGES:
            break
        odd, ratios = _oddness(features, settings, known)
        room = int(_LARGEST_SHARE * of_scales[0].n_images) - len(found)
        order = odd.argsort(descending=True)[: max(room, 0)]
        new = order[odd[order] > largest_usual(len(odd))]
        if not len(new):
            break
        found |= dict(zip(kept[new].tolist(), ratios[new].tolist(), strict=True))
        kept = kept[~torch.isin(torch.arange(len(kept)), new)]
        features = of_scales[0].some(_rows(kept, features.n_tiles))
    if not found:
        return list(of_scales), found
    smaller = [of_scale.some(_rows(kept, of_scale.n_tiles)) for of_scale in of_scales[1:]]
    return [features, *smaller], dict(sorted(found.items()))


def warn_of_outliers(found: Mapping[int, float], names: Sequence[str], n_images: int, stacklevel: int = 2) -> None:
    """Warn of the training images that were left out, by name.

    Parameters
    ----------
    found : mapping of int to float
        As :func:`without_outliers` returns it.
    names : sequence of str
        Of these images.
    n_images : int
        All that were given.
    """
    if not found:
        return
    listed = sorted(zip(found.values(), names, strict=True), reverse=True)
    shown = [f"{name} ({ratio:.1f})" for ratio, name in listed[:_SHOWN_IMAGES]]
    if len(listed) > _SHOWN_IMAGES:
        shown.append(f"and {len(listed) - _SHOWN_IMAGES} more")
    warnings.warn(
        f"{len(found)} of {n_images} training images look defective beside the others and were left out: "
        f"{', '.join(shown)}; in brackets, how many times as far as usual they are from the others. Look at them: if "
        "they are good, exclude_outliers=False keeps them",
        UserWarning,
        stacklevel=stacklevel,
    )


def _oddness(features: TrainingFeatures, settings: TrainingSettings, known: Coreset | None) -> tuple[Tensor, Tensor]:
    """Return how many deviations each image (n,) lies above the others, and its distance in units of the median."""
    precision = discriminator_precision(settings.precision, features.device)
    exemplars = exemplars_of(features, precision, settings.n_exemplars, known=known)
    n_largest = max(round(LARGEST * features.n_positions), 1)
    usual_std = USUAL_STD * math.sqrt(1 + _OF_ONE_PATCH / n_largest)
    smallest = SMALLEST_DISTANCE * float(exemplars.coreset.spread)
    odd, ratios = [], []
    for of_patches in (exemplars.nearest, exemplars.third):
        if of_patches.isinf().any():  # too few groups of images
            continue
        distances = mean_of_largest(of_patches).unflatten(0, (-1, features.n_tiles)).amax(1).cpu().double()
        distances = distances.clamp_min(max(smallest, torch.finfo(torch.float32).eps))
        odd.append(torch.from_numpy(oddness(distances.numpy(), usual_std)))
        ratios.append(distances / distances.median())
    return torch.stack(odd).amax(0), torch.stack(ratios).amax(0)


def _rows(images: Tensor, n_tiles: int) -> Tensor:
    """Return the rows of images (n,), each of which has ``n_tiles``: (n * n_tiles,)."""
    return (images[:, None] * n_tiles + torch.arange(n_tiles)).flatten()
