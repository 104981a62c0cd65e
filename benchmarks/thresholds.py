"""Thresholds from normal images alone: false alarms on unseen normal images and misses, by number of training images.

    python benchmarks/thresholds.py --data ../shared/data --category bottle screw commutator --kinds hex_nut fabric
    python benchmarks/thresholds.py --summary

For every category, seed and number, n normal images are drawn. A head is trained on all of them, and one on each half.
The candidates compute thresholds from their scores:

- auto: the threshold of ``contamination="auto"``; for the fused score it is the tail of logarithms times the bias of
  training images scored as if they were new.
- tail: the tail of a Gumbel distribution fitted to the scores of the training images, each scored as if it were new;
  never a second head.
- tail of logarithms: the same for the logarithms of the scores, with a usual variance, if all are positive.
- tail, second head: the same, with spread and shift from a second head that is trained on half of the images; always.
- cross-fitted, quantile and tail: the scores of both halves, each by the head of the other, pooled.
- training scores, 99%: the 1% quantile of the training images' scores; lowest training score: their minimum.
- held-out half, conformal: that of ``ConformalThreshold``, at 1% or the smallest rate that so few images can guarantee;
  the detector is the head of the other half. Held-out half, tail: the Gumbel tail through the same scores.

One row per candidate is written to a CSV as soon as its category, seed and number are done. Rows that are there are not
computed again, so a run may be stopped at any time. Unseen normal images are those of the test set and, in real
categories, training images that were not drawn. Test images are scored for the table alone: nothing is chosen by them.
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
from skpbas._features.reading import Reading
from skpbas._features.sampling import TrainingFeatures
from skpbas._features.store import FeatureStore
from skpbas._training.completion import estimate_offset, new_scorer, score_halves, score_stored
from skpbas._training.loop import train_head
from skpbas._training.settings import TrainingSettings
from skpbas._training.threshold import FALSE_ALARM_RATE, SMALLEST_SPLIT, auto_offset, offset_of_ratios
from skpbas.calibration import ConformalThreshold
from skpbas.core.backbones import FeatureExtractor
from skpbas.core.patch_scores import PatchScorer
from skpbas.datasets import INSPECTION_KINDS, load_mvtec, make_inspection_images
from skpbas.metrics import image_auroc

SIZES = [10, 20, 50, 100, 200, 500, 1000]
KEY = ("category", "seed", "n_train", "backbone", "image_size", "patch_score")
Scores = NDArray[np.float64]


@dataclass
class Category:
    """Images of a category.

    Attributes
    ----------
    pool : list
        Normal images that training images are drawn from.
    normal, anomalous : list
        Test images.
    tests_on_pool : bool
        Whether images of the pool that are not drawn are test images too.
    """

    pool: list[Any]
    normal: list[Any]
    anomalous: list[Any]
    tests_on_pool: bool


class GivenScores(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A detector whose images are their own scores."""

    def fit(self, X: Any = None, y: Any = None) -> GivenScores:
        """Do nothing."""
        self.fitted_ = True
        return self

    def score_samples(self, X: Any) -> Scores:
        """Return X."""
        return np.ravel(X)


def load(name: str, options: argparse.Namespace, seed: int) -> Category:
    """Return a real category, or a generated one, whose product depends on the seed."""
    if name in options.category:
        root = category_root(options.data, name)
        train, test = (load_mvtec(root, name, split) for split in ("train", "test"))
        normal = [image for image, label in zip(test.images, test.labels, strict=True) if label == 1]
        anomalous = [image for image, label in zip(test.images, test.labels, strict=True) if label == -1]
        return Category(list(train.images), normal, anomalous, tests_on_pool=True)
    n_pool = max(options.sizes)
    n_normal = n_pool + options.n_normal
    made = make_inspection_images(n_normal, options.n_anomalous, kind=name, size=options.image_size, random_state=seed)
    images = list(made.images)
    return Category(images[:n_pool], images[n_pool:n_normal], images[n_normal:], tests_on_pool=False)


class Bench:
    """The stored features of a category, and the thresholds of heads that are trained on some of them."""

    def __init__(self, category: Category, detector: PBASDetector, seed: int) -> None:
        self.category, self.seed = category, seed
        self.settings: TrainingSettings = detector._training_settings()
        items = [*category.pool, *category.normal, *category.anomalous]
        reading, _ = Reading.planned(detector, items, np.arange(len(category.pool)))
        self.extractor: FeatureExtractor = reading.new_extractor(detector, torch.Generator().manual_seed(seed))
        level_maps = detector._level_maps(items, self.extractor, reading)
        self.store: FeatureStore = level_maps.store(range(len(items)), torch.float16, show_progress=False)
        self.n_pool = len(category.pool)
        self.order = torch.randperm(self.n_pool, generator=torch.Generator().manual_seed(seed))
        self.scorers: dict[str, PatchScorer] = {}

    def features(self, rows: torch.Tensor) -> TrainingFeatures:
        """Return a view of some images."""
        generator = torch.Generator().manual_seed(self.seed)
        return TrainingFeatures(self.store, rows, self.extractor.aggregator, torch.device("cpu"), generator)

    def trained(self, features: TrainingFeatures) -> PatchScorer:
        """Return the patch scorer of a head trained with as many epochs as in a fit on these images."""
        return new_scorer(features, train_head(features, self.settings), self.settings)

    def test_scores(self, scorer: PatchScorer, n_train: int) -> tuple[Scores, Scores]:
        """Return the scores of unseen normal and of anomalous images."""
        first_anomalous = self.n_pool + len(self.category.normal)
        normal = torch.arange(self.n_pool, first_anomalous)
        if self.category.tests_on_pool:
            normal = torch.cat([normal, self.order[n_train:]])
        anomalous = torch.arange(first_anomalous, len(self.store))
        return score_stored(self.features(normal), scorer), score_stored(self.features(anomalous), scorer)

    def thresholds(self, n_train: int) -> Iterator[tuple[str, float, float, str]]:
        """Yield the name, threshold, guaranteed rate (NaN: none) and scorer's name of each candidate."""
        drawn = self.features(self.order[:n_train].sort().values)
        whole = self.scorers["whole"] = self.trained(drawn)
        of_training = score_stored(drawn, whole)
        as_new = score_stored(drawn, whole, as_new=True)
        yield "auto", estimate_offset(drawn, whole, self.settings), math.nan, "whole"
        yield "tail", auto_offset(as_new, shift=0.0), math.nan, "whole"
        if (as_new < 0).all():
            yield "tail of logarithms", offset_of_ratios(-as_new), math.nan, "whole"
        yield "training scores, 99%", float(np.quantile(of_training, FALSE_ALARM_RATE)), math.nan, "whole"
        yield "lowest training score", float(of_training.min()), math.nan, "whole"
        if n_train < SMALLEST_SPLIT:
            return
        yield "tail, second head", auto_offset(as_new, score_halves(drawn, self.settings)), math.nan, "whole"
        first, second = drawn.halves()
        half = self.scorers["half"] = self.trained(first)
        held_out = score_stored(second, half)
        crossed = np.concatenate([held_out, score_stored(first, self.trained(second))])
        yield "cross-fitted, quantile", float(np.quantile(crossed, FALSE_ALARM_RATE)), math.nan, "whole"
        yield "cross-fitted, tail", auto_offset(crossed, shift=0.0), math.nan, "whole"
        rate = max(FALSE_ALARM_RATE, 1 / (len(held_out) + 1))
        model = ConformalThreshold(FrozenEstimator(GivenScores().fit()), max_false_alarm_rate=rate)
        model.fit(held_out[:, None])
        yield "held-out half, conformal", model.offset_, model.false_alarm_rate_, "half"
        yield "held-out half, tail", auto_offset(held_out, shift=0.0), math.nan, "half"

    def rows(self, n_train: int) -> list[dict[str, Any]]:
        """Return a row for every candidate."""
        self.scorers.clear()
        start = time.perf_counter()
        candidates = list(self.thresholds(n_train))
        seconds = time.perf_counter() - start
        test_scores = {name: self.test_scores(scorer, n_train) for name, scorer in self.scorers.items()}
        rows = []
        for candidate, offset, guaranteed_rate, name in candidates:
            normal, anomalous = test_scores[name]
            labels = np.repeat([1, -1], [len(normal), len(anomalous)])
            rows.append(
                {
                    "n_train": n_train,
                    "candidate": candidate,
                    "offset": offset,
                    "guaranteed_rate": guaranteed_rate,
                    "flagged_normal": int((normal < offset).sum()),
                    "unseen_normal": len(normal),
                    "missed_anomalous": int((anomalous >= offset).sum()),
                    "unseen_anomalous": len(anomalous),
                    "image_auroc": image_auroc(labels, -np.concatenate([normal, anomalous])),
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
            "patch_score": options.patch_score,
        }
        missing = [n for n in options.sizes if tuple(str({**labels, "n_train": n}[k]) for k in KEY) not in done]
        if not missing:
            continue
        category = load(name, options, seed)
        missing = [n for n in missing if n <= len(category.pool)]
        if not missing:
            continue
        detector = PBASDetector(
            options.backbone,
            weights=None if options.weights == "none" else options.weights,
            resize="stretch",  # as in the rows that are kept
            image_size=options.image_size,
            patch_score=options.patch_score,
            max_epochs=options.max_epochs or "auto",
            device="cpu",
            random_state=seed,
        )
        bench = Bench(category, detector, seed)
        for n in missing:
            rows = [{**labels, **row} for row in bench.rows(n)]
            append_rows(options.output, rows)
            shown = {row["candidate"]: f"{row['flagged_normal']}/{row['missed_anomalous']}" for row in rows}
            print(f"{name} seed {seed} n {n}: {shown}", flush=True)


def summary(rows: list[dict[str, str]]) -> str:
    """Return tables of false alarms / misses in percent, by candidate and number of training images.

    They are means over categories and seeds.
    """
    parts = []
    for generated in ("0", "1"):
        chosen = [row for row in rows if row["generated"] == generated]
        if not chosen:
            continue
        sizes = sorted({int(row["n_train"]) for row in chosen})
        cells: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        for row in chosen:
            alarms = int(row["flagged_normal"]) / int(row["unseen_normal"])
            misses = int(row["missed_anomalous"]) / int(row["unseen_anomalous"])
            cells[row["candidate"], int(row["n_train"])].append((alarms, misses))
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
    """Return the means of the first and of the second values."""
    mean: Callable[[Any], float] = statistics.fmean
    return [mean(values) for values in zip(*pairs, strict=True)]


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="*", default=[], help="real categories, under --data")
    parser.add_argument("--kinds", nargs="*", default=[], choices=INSPECTION_KINDS, help="generated categories")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="numbers of training images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights", default="none", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--patch-score", default="fused")
    parser.add_argument("--max-epochs", type=int, default=0, help='0: "auto"')
    parser.add_argument("--n-normal", type=int, default=200, help="unseen normal images of a generated category")
    parser.add_argument("--n-anomalous", type=int, default=60, help="anomalous images of a generated category")
    parser.add_argument("--summary", action="store_true", help="only print the tables")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/thresholds.csv"))
    options = parser.parse_args()
    if options.category and options.data is None:
        parser.error("--category needs --data, the folder that contains it")
    if not options.summary:
        run(options)
    rows = read_rows(options.output)
    print(summary(rows) if rows else f"no rows in {options.output}")


if __name__ == "__main__":
    main()
