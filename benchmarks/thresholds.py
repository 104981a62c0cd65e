"""Ways to set the threshold from good images alone: false alarms on unseen good ones against misses, by training size.

    python benchmarks/thresholds.py --data ../shared/data --category bottle screw commutator --kinds hex_nut fabric
    python benchmarks/thresholds.py --summary

Every category, seed and size: n good images are drawn; a head is trained on all of them, and one on each half. The
candidates set thresholds from their scores:

- auto: what ``contamination="auto"`` sets: of the fused score, the tail of logarithms.
- tail: a Gumbel tail through the training images' scores, each scored as if it were new; never a second head.
- tail of logarithms: the same of the scores' logarithms, where all are positive.
- tail, second head: the same with spread and shift from a second head trained on half of the images; always.
- cross-fitted, quantile and tail: scores of either half by the head of the other, together.
- training scores, 99 %: their 1 % quantile; lowest training score.
- held-out half, conformal: ``ConformalThreshold``'s, at 1 % or the smallest rate that so few images can promise; the
  detector is the head of the other half. Held-out half, tail: the Gumbel tail through the same scores.

One row a candidate goes to a CSV as soon as its category, seed and size are done, and rows that are there are not
computed again: a run may be stopped at any time. Unseen good images are the test set's and, in real categories,
training images that were not drawn. Test images are scored for the table alone: nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from categories import category_root
from measure import append_rows, read_rows, table
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.frozen import FrozenEstimator

from skpbas import PBASDetector
from skpbas._features.extraction import LevelMaps
from skpbas._features.store import FeatureStore
from skpbas._inputs.images import ImageSequence
from skpbas._training.loop import (
    Scorer,
    TrainingFeatures,
    TrainingSettings,
    estimate_offset,
    new_scorer,
    score_halves,
    score_stored,
    train_head,
)
from skpbas._training.threshold import FALSE_ALARM_RATE, SMALLEST_SPLIT, auto_offset, offset_of_ratios
from skpbas.calibration import ConformalThreshold
from skpbas.core.backbones import FeatureExtractor
from skpbas.datasets import INSPECTION_KINDS, load_mvtec, make_inspection_images
from skpbas.metrics import image_auroc

SIZES = [10, 20, 50, 100, 200, 500, 1000]
KEY = ("category", "seed", "n", "backbone", "image_size", "score")
Scores = NDArray[np.float64]


@dataclass
class Category:
    """Images of a category: good ones to draw from, good ones nobody draws, defective ones."""

    pool: list[Any]
    good: list[Any]
    defective: list[Any]
    pool_is_judged: bool  # whether what is not drawn of the pool counts among the unseen


class GivenScores(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted detector for which an image is its own score."""

    def fit(self, X: Any = None, y: Any = None) -> GivenScores:
        """Learn nothing."""
        self.fitted_ = True
        return self

    def score_samples(self, X: Any) -> Scores:
        """Return X."""
        return np.ravel(X)


def load(name: str, options: argparse.Namespace, seed: int) -> Category:
    """Return a real category, or a generated one: with another seed another product of its kind."""
    if name in options.category:
        root = category_root(options.data, name)
        train, test = (load_mvtec(root, name, split) for split in ("train", "test"))
        good = [image for image, label in zip(test.images, test.labels, strict=True) if label == 1]
        defective = [image for image, label in zip(test.images, test.labels, strict=True) if label == -1]
        return Category(list(train.images), good, defective, pool_is_judged=True)
    n_pool = max(options.sizes)
    made = make_inspection_images(
        n_pool + options.n_good, options.n_defective, kind=name, size=options.image_size, random_state=seed
    )
    images = list(made.images)
    n = n_pool + options.n_good
    return Category(images[:n_pool], images[n_pool:n], images[n:], pool_is_judged=False)


class Bench:
    """A category's stored features, and what heads trained on some of them say of the others."""

    def __init__(self, category: Category, detector: PBASDetector, seed: int) -> None:
        self.category, self.seed = category, seed
        self.settings: TrainingSettings = detector._training_settings()
        self.extractor: FeatureExtractor = detector._make_extractor(torch.Generator().manual_seed(seed))
        items = [*category.pool, *category.good, *category.defective]
        images = ImageSequence(
            items, image_size=self.extractor.image_size, resize="stretch", smallest=self.extractor.stride
        )
        maps = LevelMaps(images, self.extractor, 1, None)
        self.store: FeatureStore = maps.store(range(len(items)), torch.float16, show_progress=False)
        self.n_pool = len(category.pool)
        self.order = torch.randperm(self.n_pool, generator=torch.Generator().manual_seed(seed))

    def features(self, rows: torch.Tensor) -> TrainingFeatures:
        """Return a view of some images."""
        generator = torch.Generator().manual_seed(self.seed)
        return TrainingFeatures(self.store, rows, self.extractor.aggregator, torch.device("cpu"), generator)

    def head(self, features: TrainingFeatures) -> Scorer:
        """Train a head, with as many epochs as a fit on these images makes."""
        return new_scorer(features, train_head(features, self.settings), self.settings)

    def judged(self, scorer: Scorer, n: int) -> tuple[Scores, Scores]:
        """Return the scores of unseen good and of defective images."""
        first_defective = self.n_pool + len(self.category.good)
        unseen = torch.arange(self.n_pool, first_defective)
        if self.category.pool_is_judged:
            unseen = torch.cat([unseen, self.order[n:]])
        defective = torch.arange(first_defective, len(self.store))
        return score_stored(self.features(unseen), scorer), score_stored(self.features(defective), scorer)

    def thresholds(self, n: int) -> Iterator[tuple[str, float, float, str]]:
        """Yield each candidate's name, threshold, promised rate (NaN: none) and the head that it belongs to."""
        drawn = self.features(self.order[:n].sort().values)
        whole = self.heads["whole"] = self.head(drawn)
        of_training = score_stored(drawn, whole)
        as_new = score_stored(drawn, whole, as_new=True)
        yield "auto", estimate_offset(drawn, whole, self.settings), math.nan, "whole"
        yield "tail", auto_offset(as_new, shift=0.0), math.nan, "whole"
        if (as_new < 0).all():
            yield "tail of logarithms", offset_of_ratios(-as_new), math.nan, "whole"
        yield "training scores, 99 %", float(np.quantile(of_training, FALSE_ALARM_RATE)), math.nan, "whole"
        yield "lowest training score", float(of_training.min()), math.nan, "whole"
        if n < SMALLEST_SPLIT:
            return
        yield "tail, second head", auto_offset(as_new, score_halves(drawn, self.settings)), math.nan, "whole"
        first, second = drawn.halves()
        half = self.heads["half"] = self.head(first)
        held_out = score_stored(second, half)
        crossed = np.concatenate([held_out, score_stored(first, self.head(second))])
        yield "cross-fitted, quantile", float(np.quantile(crossed, FALSE_ALARM_RATE)), math.nan, "whole"
        yield "cross-fitted, tail", auto_offset(crossed, shift=0.0), math.nan, "whole"
        rate = max(FALSE_ALARM_RATE, 1 / (len(held_out) + 1))
        model = ConformalThreshold(FrozenEstimator(GivenScores().fit()), max_false_alarm_rate=rate)
        model.fit(held_out[:, None])
        yield "held-out half, conformal", model.offset_, model.false_alarm_rate_, "half"
        yield "held-out half, tail", auto_offset(held_out, shift=0.0), math.nan, "half"

    def rows(self, n: int) -> list[dict[str, Any]]:
        """Return a row for every candidate at a training size."""
        self.heads: dict[str, Scorer] = {}
        start = time.perf_counter()
        candidates = list(self.thresholds(n))
        seconds = time.perf_counter() - start
        judged = {name: self.judged(scorer, n) for name, scorer in self.heads.items()}
        rows = []
        for name, offset, promised, head in candidates:
            good, defective = judged[head]
            labels = np.repeat([1, -1], [len(good), len(defective)])
            rows.append(
                {
                    "n": n,
                    "candidate": name,
                    "offset": offset,
                    "promised": promised,
                    "flagged_good": int((good < offset).sum()),
                    "unseen_good": len(good),
                    "missed": int((defective >= offset).sum()),
                    "defective": len(defective),
                    "image_auroc": image_auroc(labels, -np.concatenate([good, defective])),
                    "seconds": round(seconds, 1),  # of all candidates together
                }
            )
        return rows


def run(options: argparse.Namespace) -> None:
    """Compute the rows that are missing."""
    done = {tuple(row[k] for k in KEY) for row in read_rows(options.output)}
    for name, seed in product([*options.category, *options.kinds], options.seeds):
        labels = {
            "category": name,
            "generated": int(name not in options.category),
            "seed": seed,
            "backbone": options.backbone,
            "image_size": options.image_size,
            "score": options.score,
        }
        missing = [n for n in options.sizes if tuple(str({**labels, "n": n}[k]) for k in KEY) not in done]
        if not missing:
            continue
        category = load(name, options, seed)
        missing = [n for n in missing if n <= len(category.pool)]
        if not missing:
            continue
        detector = PBASDetector(
            options.backbone,
            weights=None if options.weights == "none" else options.weights,
            image_size=options.image_size,
            score=options.score,
            max_epochs=options.max_epochs or "auto",
            device="cpu",
            random_state=seed,
        )
        bench = Bench(category, detector, seed)
        for n in missing:
            rows = [{**labels, **row} for row in bench.rows(n)]
            append_rows(options.output, rows)
            shown = {row["candidate"]: f"{row['flagged_good']}/{row['missed']}" for row in rows}
            print(f"{name} seed {seed} n {n}: {shown}", flush=True)


def summary(rows: list[dict[str, str]]) -> str:
    """Return tables of false alarms / misses in percent, by candidate and training size: means over categories."""
    parts = []
    for generated in ("0", "1"):
        chosen = [row for row in rows if row["generated"] == generated]
        if not chosen:
            continue
        sizes = sorted({int(row["n"]) for row in chosen})
        cells: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        for row in chosen:
            alarms = int(row["flagged_good"]) / int(row["unseen_good"])
            misses = int(row["missed"]) / int(row["defective"])
            cells[row["candidate"], int(row["n"])].append((alarms, misses))
        lines = []
        for candidate in dict.fromkeys(row["candidate"] for row in chosen):
            line: dict[str, Any] = {"false alarms / misses, %": candidate}
            for n in sizes:
                pairs = cells.get((candidate, n))
                line[f"n = {n}"] = "" if not pairs else " / ".join(f"{100 * m:.1f}" for m in means(pairs))
            lines.append(line)
        names = sorted({row["category"] for row in chosen})
        seeds = sorted({row["seed"] for row in chosen})
        kind = "generated" if generated == "1" else "real"
        parts.append(f"{kind} categories: {', '.join(names)}; seeds {', '.join(seeds)}\n\n{table(lines)}")
    return "\n\n".join(parts)


def means(pairs: list[tuple[float, float]]) -> list[float]:
    """Return the mean of each place."""
    mean: Callable[[Any], float] = statistics.fmean
    return [mean(values) for values in zip(*pairs, strict=True)]


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="*", default=[], help="real ones, under --data")
    parser.add_argument("--kinds", nargs="*", default=[], choices=INSPECTION_KINDS, help="generated ones")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights", default="none", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--score", default="fused")
    parser.add_argument("--max-epochs", type=int, default=0, help='0: "auto"')
    parser.add_argument("--n-good", type=int, default=200, help="unseen good images of a generated category")
    parser.add_argument("--n-defective", type=int, default=60, help="defective images of a generated category")
    parser.add_argument("--summary", action="store_true", help="only print the tables of the rows there are")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/thresholds.csv"))
    options = parser.parse_args()
    if options.category and options.data is None:
        parser.error("--category needs --data, the folder that holds it")
    if not options.summary:
        run(options)
    rows = read_rows(options.output)
    print(summary(rows) if rows else f"no rows in {options.output}")


if __name__ == "__main__":
    main()
