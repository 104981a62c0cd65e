"""Which images prediction names as unlike those of fit: unseen ones as they are, and after changes of camera and light.

    python benchmarks/other_cameras.py --data ../shared/data

Nothing is trained: only what is measured on images before the network is compared. For each product and number of
training images, the shares of named images are means over the first n images and random choices of n.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from categories import load_images
from numpy.typing import NDArray

from skpbas._inputs.comparison import Comparison
from skpbas._inputs.decoding import decode
from skpbas._inputs.image_statistics import GoodStatistics
from skpbas._inputs.images import ImageSequence, ViewDetails
from skpbas.datasets import INSPECTION_KINDS, make_inspection_images

Pixels = NDArray[Any]

SIZE = 256


def times(image: Pixels, factor: float) -> Pixels:
    """Return an 8-bit image of another exposure, clipped as by a sensor."""
    return np.clip(np.rint(image * factor), 0, 255).astype(np.uint8)


CHANGES = {
    "x 1.3": lambda image: times(image, 1.3),
    "x 1.2": lambda image: times(image, 1.2),
    "x 0.8": lambda image: times(image, 0.8),
    "x 0.7": lambda image: times(image, 0.7),
    "BGR": lambda image: image[..., ::-1] if image.ndim == 3 else image,
    "gray": lambda image: image.mean(2).astype(np.uint8) if image.ndim == 3 else image,
    "12 in 16": lambda image: image.astype(np.uint16) * 16,
    "twice": lambda image: image / 255.0 / 255.0,
    "floats": lambda image: image / 255.0,
}


def measured(images: Sequence[Any]) -> list[ViewDetails]:
    """Return what is known of images before the network."""
    sequence = ImageSequence(images, image_size=(SIZE, SIZE), resize="stretch", smallest=16)
    return [sequence.view(index, image)[1] for index, image in enumerate(images)]


def share_named(good: list[ViewDetails], images: list[ViewDetails]) -> float:
    """Return which share of images is named, by a detector of these good ones."""
    comparison, named = Comparison(GoodStatistics.of(good)), 0
    for index, image in enumerate(images):
        comparison.note(index, "image", image)
        named += bool(comparison.texts(""))
    return named / len(images)


def products(data: Path | None, categories: Sequence[str]) -> Any:
    """Yield the name of each product, its training and test images as arrays, and which test images are good."""
    for category in categories if data is not None else []:
        images = load_images(category, data)
        train, test = ([decode(path, str(path)).pixels for path in paths] for paths in (images.train, images.test))
        yield category, train, test, images.labels == 1
    for kind in INSPECTION_KINDS:
        made = make_inspection_images(120, 40, kind=kind, size=SIZE, random_state=0)
        yield kind, list(made.images[:60]), list(made.images[60:]), made.labels[60:] == 1


def main() -> None:
    """Parse the command line and print a line per product and number of training images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--category", nargs="+", default=["bottle", "screw", "commutator"])
    parser.add_argument("--n", nargs="+", type=int, default=[5, 30])
    parser.add_argument("--choices", type=int, default=20)
    options = parser.parse_args()
    print("shares in %:", "product", "n", "unseen", *CHANGES, sep=" | ")
    for name, train, test, is_good in products(options.data, options.category):
        details = measured(train)
        good_test = [image for image, good in zip(test, is_good, strict=True) if good]
        tried = {"unseen": measured(test)}
        tried |= {what: measured([change(image) for image in good_test]) for what, change in CHANGES.items()}
        for n in (*options.n, len(train)):
            choices = [np.arange(n)]
            if n < len(train):
                choices += [
                    np.random.default_rng(seed).choice(len(train), n, replace=False) for seed in range(options.choices)
                ]
            shares = {
                what: np.mean([share_named([details[i] for i in chosen], images) for chosen in choices])
                for what, images in tried.items()
            }
            print(name, n, *(f"{100 * share:.1f}" for share in shares.values()), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
