r"""The automatic threshold on random splits of all good images of a category, by number of training images.

    python benchmarks/splits.py --data ../shared/data --category bottle screw commutator \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth
    python benchmarks/splits.py --summary

A test folder has too few good images to tell 1 % from 3 % of false alarms. So the good images of both folders are put
together, and split by the seed into those that ``fit`` learns from and at most ``--unseen`` others. *Excess misses* are
the misses at ``offset_`` minus those where exactly the wanted share of the unseen good images is flagged.

A row is written to a CSV as soon as its fit is measured, and not computed again.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from categories import Images, load_images
from measure import append_rows, read_rows, table

from skpbas import PBASDetector
from skpbas.metrics import image_auroc, miss_rate

KEY = ("category", "backbone", "n_train", "seed")


def run(images: Images, detector: PBASDetector, n_train: int, n_unseen: int) -> dict[str, Any]:
    """Fit on ``n_train`` good images, drawn by the detector's seed, and measure on others and on all defective ones."""
    good = [*images.train, *(image for image, label in zip(images.test, images.labels, strict=True) if label == 1)]
    defective = [image for image, label in zip(images.test, images.labels, strict=True) if label == -1]
    order = np.random.default_rng(detector.random_state).permutation(len(good))
    drawn, unseen = order[:n_train], order[n_train : n_train + n_unseen]
    detector.fit([good[i] for i in drawn])
    scores = -detector.score_samples([*(good[i] for i in unseen), *defective])
    flagged = scores > -detector.offset_
    labels = np.repeat([1, -1], [len(unseen), len(defective)])
    misses = float((~flagged)[labels == -1].mean())
    return {
        "unseen_good": len(unseen),
        "flagged_good": int(flagged[labels == 1].sum()),
        "misses": misses,
        "excess_misses": misses - miss_rate(labels, scores, max_fpr=detector.false_alarm_rate),
        "image_auroc": image_auroc(labels, scores),
    }


def summary(rows: list[dict[str, str]]) -> str:
    """Return a table of false alarms / misses / excess misses in percent; false alarms are pooled over the seeds."""
    sizes = sorted({int(row["n_train"]) for row in rows})
    cells: dict[tuple[str, str, int], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        cells[row["category"], row["backbone"], int(row["n_train"])].append(row)
    lines = []
    for category, backbone in dict.fromkeys((row["category"], row["backbone"]) for row in rows):
        line = {"false alarms / misses / excess, %": f"{category}, {backbone}"}
        for n in sizes:
            line[f"n = {n}"] = figures(cells[category, backbone, n])
        lines.append(line)
    lines.append(
        {"false alarms / misses / excess, %": "all"}
        | {f"n = {n}": figures([row for row in rows if int(row["n_train"]) == n]) for n in sizes}
    )
    return table(lines)


def figures(rows: list[dict[str, str]]) -> str:
    """Return pooled false alarms, mean misses and mean excess misses of some runs, in percent."""
    if not rows:
        return ""
    alarms = sum(int(row["flagged_good"]) for row in rows) / sum(int(row["unseen_good"]) for row in rows)
    misses, excess = (statistics.fmean(float(row[name]) for row in rows) for name in ("misses", "excess_misses"))
    return f"{100 * alarms:.1f} / {100 * misses:.0f} / {100 * excess:+.0f}"


def main() -> None:
    """Parse the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", default=["bottle", "screw", "commutator"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[5, 20, 80, 200], help="numbers of training images")
    parser.add_argument("--unseen", type=int, default=150, help="most unseen good images of a split")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--memory", type=Path, help="folder that keeps feature maps, which runs share")
    parser.add_argument("--summary", action="store_true", help="only print the table")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/splits.csv"))
    options = parser.parse_args()
    if options.data is None and not options.summary:
        parser.error("--data is needed: the folder that contains the categories")
    done = {tuple(row[name] for name in KEY) for row in read_rows(options.output)}
    for category, n_train, seed in [] if options.summary else product(options.category, options.sizes, options.seeds):
        about = dict(zip(KEY, (category, options.backbone, n_train, seed), strict=True))
        if tuple(map(str, about.values())) in done:
            continue
        detector = PBASDetector(
            options.backbone,
            weights=None if options.weights == "none" else options.weights,
            memory=options.memory,
            random_state=seed,
        )
        row = {**about, **run(load_images(category, options.data), detector, n_train, options.unseen)}
        append_rows(options.output, [row])
        print(row, flush=True)
    rows = read_rows(options.output)
    print(summary(rows) if rows else f"no rows in {options.output}")


if __name__ == "__main__":
    main()
