r"""Small defects in large images: the image resized as a whole, at several sizes, and in tiles.

    python benchmarks/small_defects.py --size 3000 4000 --defect 12 --train 20 --test 20 \
        --image-size 256 1024 --tile 256

Plates of brushed metal are generated; half of the test plates get one dark or bright spot or scratch of ``--defect``
pixels. Printed are defects found and good plates flagged at the automatic threshold, image AUROC and PRO, the time of
``fit`` and of a prediction, and the most memory of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import append_rows
from numpy.typing import NDArray

from skpbas import PBASDetector
from skpbas.datasets import make_inspection_images
from skpbas.metrics import image_auroc, pixel_pro

CONTRAST = 60  # gray levels


def with_defect(
    rng: np.random.Generator, image: NDArray[np.uint8], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a copy of a plate with a spot or a scratch of ``size`` pixels, and its mask."""
    height, width = image.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    row, column = rng.integers(2 * size, height - 2 * size), rng.integers(2 * size, width - 2 * size)
    if rng.random() < 0.5:
        mask = (rows - row) ** 2 + (columns - column) ** 2 <= (size / 2) ** 2
    else:
        angle = rng.uniform(0, np.pi)
        along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
        across = (columns - column) * np.sin(angle) - (rows - row) * np.cos(angle)
        mask = (np.abs(along) <= size) & (np.abs(across) <= 1)
    changed = image.astype(np.int16)
    changed[mask] += rng.choice([-CONTRAST, CONTRAST])
    return changed.clip(0, 255).astype(np.uint8), mask


def run(parameters: dict[str, Any], train: list[Any], test: list[Any], masks: list[Any]) -> dict[str, Any]:
    """Fit and measure one detector."""
    start = time.perf_counter()
    detector = PBASDetector(**parameters).fit(train)
    fit_seconds = time.perf_counter() - start
    start = time.perf_counter()
    scores, maps = zip(*detector.iter_scores_and_maps(test, size="input"), strict=True)
    seconds = (time.perf_counter() - start) / len(test)
    labels = np.array([1 if mask is None else -1 for mask in masks])
    flagged = np.array(scores) < detector.offset_
    return {
        "map_shape": list(detector.map_shape_),
        "found": int(flagged[labels == -1].sum()),
        "n_defective": int((labels == -1).sum()),
        "flagged_good": int(flagged[labels == 1].sum()),
        "n_good": int((labels == 1).sum()),
        "image_auroc": image_auroc(labels, -np.array(scores)),
        "pixel_pro": pixel_pro(masks, maps),
        "fit_seconds": fit_seconds,
        "seconds_per_image": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[3000, 4000], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--defect", type=int, default=12, help="diameter of spots and half the length of scratches")
    parser.add_argument("--train", type=int, default=20, help="good plates to learn from")
    parser.add_argument("--test", type=int, default=20, help="good plates, and as many defective ones, to test on")
    parser.add_argument("--image-size", type=int, nargs="*", default=[256, 1024], help="sizes of whole images")
    parser.add_argument("--tile", type=int, nargs="*", default=[256], help="sides of tiles, inspected at 256")
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/small_defects.csv"))
    options = parser.parse_args()

    plates = list(
        make_inspection_images(
            options.train + 2 * options.test,
            0,
            kind="brushed_metal",
            size=tuple(options.size),
            random_state=options.seed,
        ).images
    )
    rng = np.random.default_rng(options.seed)
    train, test = plates[: options.train], plates[options.train :]
    masks: list[Any] = [None] * options.test
    for i in range(options.test, len(test)):
        test[i], mask = with_defect(rng, test[i], options.defect)
        masks.append(mask)
    common = {"backbone": options.backbone, "weights": options.weights, "random_state": options.seed}
    ways = [{**common, "image_size": size} for size in options.image_size]
    ways += [{**common, "tile": tile, "image_size": 256} for tile in options.tile]
    for parameters in ways:
        result = run(parameters, train, test, masks)
        print(json.dumps({**parameters, **{k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}}))
        about = {"size": str(options.size), "defect": options.defect, "n_train": options.train}
        append_rows(options.output, [{**about, "parameters": json.dumps(parameters), **result}])


if __name__ == "__main__":
    main()
