"""``partial_fit`` beside ``fit`` on all images: what is lost by leaving the networks as they are.

    python benchmarks/further_images.py --data ../shared/data --output further_images.csv

For each category and seed, images of the training set are drawn. One detector is fitted on half of them and gets the
rest by ``partial_fit`` in two steps; another one is fitted on all. Test images are those of the test set and, good
ones, some of the training set that were not drawn. One row is written per detector. Times are those of the processor,
which other programs on the machine change little; with ``--memory`` decoding and network are left out of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from categories import load_images, masks_at_map_size
from measure import append_rows, read_rows, table

from skpbas import PBASDetector
from skpbas.metrics import image_auroc, pixel_pro


def measured(detector: PBASDetector, test: list[Any], normal: np.ndarray, masks: Any, unseen: list[Any]) -> dict:
    """Return what a detector says of test images, and of good ones beyond those."""
    scored = list(detector.iter_scores_and_maps(test))
    scores, maps = np.array([score for score, _ in scored]), np.stack([anomaly_map for _, anomaly_map in scored])
    of_good = np.concatenate([scores[normal], detector.score_samples(unseen)])
    return {
        "auroc": round(image_auroc(np.where(normal, 1, -1), -scores), 4),
        "pro": round(pixel_pro(masks, maps), 4),
        "misses": round(float(np.mean(scores[~normal] >= detector.offset_)), 4),
        "false_alarms": round(float(np.mean(of_good < detector.offset_)), 4),
    }


def timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a job, and its seconds of the processor."""
    start = time.process_time()
    return job(), time.process_time() - start


def main() -> None:
    """Parse the command line, measure what is not in the file yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", nargs="+", default=["bottle", "screw"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--n", type=int, default=120, help="training images, half of which come later")
    parser.add_argument("--unseen", type=int, default=60, help="good images that are tested besides the test set")
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--memory", default=None)
    parser.add_argument("--output", type=Path, default=Path("further_images.csv"))
    options = parser.parse_args()
    for seed in options.seeds:
        for category in options.category:
            if not any((row["category"], row["seed"]) == (category, str(seed)) for row in read_rows(options.output)):
                append_rows(options.output, compare(category, seed, options))
    print(table(read_rows(options.output)))


def compare(category: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for half of the images, for the rest by ``partial_fit``, and for all at once."""
    images = load_images(category, options.data)
    drawn = np.random.default_rng(seed).permutation(len(images.train))
    train = [images.train[i] for i in drawn[: options.n]]
    unseen = [images.train[i] for i in drawn[options.n : options.n + options.unseen]]
    half, three_quarters = len(train) // 2, 3 * len(train) // 4

    def new() -> PBASDetector:
        return PBASDetector(options.backbone, random_state=seed, memory=options.memory)

    detector, seconds = timed(lambda: new().fit(train[:half]))
    rows, masks = [], masks_at_map_size(images.masks, images.test, detector.map_shape_, detector.resize)

    def add(name: str, of: PBASDetector, seconds: float) -> None:
        values = measured(of, images.test, images.labels == 1, masks, unseen)
        counts = {"images": of.n_samples_fit_, "seconds": round(seconds, 1)}
        rows.append({"category": category, "seed": seed, "training": name, **counts, **values})

    add("half", detector, seconds)
    steps = [
        timed(lambda part=part: detector.partial_fit(part))
        for part in (train[half:three_quarters], train[three_quarters:])
    ]
    add("half, then partial_fit twice", detector, sum(of_step for _, of_step in steps))
    detector, seconds = timed(lambda: new().fit(train))
    add("all", detector, seconds)
    return rows


if __name__ == "__main__":
    main()
