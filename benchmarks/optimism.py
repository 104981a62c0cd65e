"""How much better training images score than unseen good ones: what ``contamination="auto"`` corrects for.

    python benchmarks/optimism.py --data ../shared/data --category bottle screw commutator \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

fits on one half of a category's *training* images and scores both halves; no test image is read. Printed, in standard
deviations of the scores seen in training: the shift of the unseen scores' median, the ratio of the upper halves'
widths (median to 90 % quantile), and the 99 % quantile of the unseen; and the share of the unseen that the detector
flags.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from accuracy import category_root

from skpbas import PBASDetector
from skpbas.datasets import load_mvtec


def main() -> None:
    """Parse the command line, fit on halves, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", nargs="+", required=True)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--images", type=int, default=None, help="of the training images, at most (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    print(f"{'category':15} seed  images  shift  ratio    99 %  flagged")
    for category in options.category:
        images = load_mvtec(category_root(options.data, category), category, "train").images
        for seed in options.seeds:
            order = np.random.default_rng(seed).permutation(len(images))[: options.images]
            seen, unseen = ([images[i] for i in half] for half in np.array_split(order, 2))
            weights = None if options.weights == "none" else options.weights
            detector = PBASDetector(options.backbone, weights=weights, random_state=seed).fit(seen)
            a, b = -detector.score_samples(seen), -detector.score_samples(unseen)
            shift = (np.median(b) - np.median(a)) / a.std()
            ratio = np.diff(np.quantile(b, [0.5, 0.9])) / np.diff(np.quantile(a, [0.5, 0.9]))
            tail = (np.quantile(b, 0.99) - a.mean()) / a.std()
            flagged = (-b < detector.offset_).mean()
            print(
                f"{category:15} {seed:4d} {len(seen):7d} {shift:6.2f} {ratio.item():6.2f} {tail:7.2f} {flagged:8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
