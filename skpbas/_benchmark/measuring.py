"""One run: fit a detector on the training images of a category, and measure it on its test images."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas import PBASDetector
from skpbas._benchmark.dilated_pro import dilated_pro
from skpbas._benchmark.sources import CategoryImages
from skpbas.masks import to_map_size
from skpbas.metrics import image_ap, image_auroc, miss_rate, pixel_metrics

FALSE_ALARMS = (0.01, 0.02, 0.05)
MISSES = tuple(f"misses_at_{100 * rate:g}_percent" for rate in FALSE_ALARMS)
DILATED = "pixel_pro_dilated"
BEST = "best_epoch_on_test_"


@dataclass(frozen=True)
class Protocol:
    """What is computed besides the figures of the last epoch, for comparison with published figures only.

    Attributes
    ----------
    best_epoch : bool
        The figures of the epoch that is best on the test set, which is selected by test labels.
    dilated_pro : bool
        The PRO of the authors' released code.
    """

    best_epoch: bool = False
    dilated_pro: bool = False


@dataclass(frozen=True)
class Measured:
    """What a run gives.

    Attributes
    ----------
    metrics : dict of str to float
        In [0, 1], of the last epoch; those of a comparison column have a name of their own.
    facts : dict of str to int
        Numbers of images and of epochs.
    warnings : list of str
    seconds : dict of str to float
        Time of fit and of scoring.
    """

    metrics: dict[str, float]
    facts: dict[str, int]
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def measure(
    parameters: dict[str, Any], images: CategoryImages, *, share: float, seed: int, protocol: Protocol
) -> Measured:
    """Fit, score and measure.

    Parameters
    ----------
    parameters : dict of str to object
        Of the estimator, with those of runtime.
    images : CategoryImages
    share : float
        Of the training images.
    seed : int
        Of the detector, and of the choice of the training images.
    protocol : Protocol

    Raises
    ------
    SkpbasError, ValueError, OSError, RuntimeError
        What the estimator and the metrics raise.
    """
    detector = PBASDetector(**parameters, random_state=seed)
    train = share_of(images.train, share, seed)
    best = BestEpoch(images, protocol) if protocol.best_epoch else None
    if best is not None:
        if not hasattr(detector, "set_callbacks"):
            raise ValueError("--best-epoch needs callbacks, which need scikit-learn 1.9 or newer: update it")
        detector.set_callbacks(best)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        detector.fit(train)
        fitted = time.perf_counter()
        scores, maps = score(detector, images)
        scored = time.perf_counter()
        metrics = {**image_figures(images, scores), **pixel_figures(detector, images, maps, protocol)}
    facts = {
        "n_train": len(train),
        "n_test_good": int((images.labels == 1).sum()),
        "n_test_defective": int((images.labels == -1).sum()),
        "n_epochs": int(detector.n_iter_),
    }
    if best is not None:
        metrics |= {BEST + name: value for name, value in best.metrics.items()}
        facts["best_epoch_on_test"] = best.epoch
    said = list(dict.fromkeys(" ".join(str(one.message).split()) for one in caught))
    return Measured(metrics, facts, said, {"fit": fitted - start, "score": scored - fitted})


def share_of(train: list[Any], share: float, seed: int) -> list[Any]:
    """Return a share of the training images in their order; a larger share with the same seed has all of a smaller."""
    n = min(len(train), round(share * len(train)))
    return [train[i] for i in sorted(np.random.default_rng(seed).permutation(len(train))[:n])]


def score(detector: Any, images: CategoryImages) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    """Return image scores, higher for more anomalous, and anomaly maps of the test images."""
    if images.masks is None:
        return -detector.score_samples(images.test), []
    scores, maps = zip(*detector.iter_scores_and_maps(images.test), strict=True)
    return -np.asarray(scores, dtype=np.float64), list(maps)


def image_figures(images: CategoryImages, scores: NDArray[np.float64]) -> dict[str, float]:
    """Return the metrics of image scores."""
    figures = {"image_auroc": image_auroc(images.labels, scores), "image_ap": image_ap(images.labels, scores)}
    missed = {name: miss_rate(images.labels, scores, rate) for name, rate in zip(MISSES, FALSE_ALARMS, strict=True)}
    return {**figures, **missed}


def pixel_figures(
    detector: Any, images: CategoryImages, maps: list[NDArray[np.float32]], protocol: Protocol
) -> dict[str, float]:
    """Return the metrics of anomaly maps; none without masks."""
    if images.masks is None:
        return {}
    masks = to_map_size(images.masks, images.test, detector)
    figures = pixel_metrics(masks, maps)
    return {**figures, DILATED: dilated_pro(masks, maps)} if protocol.dilated_pro else figures


class BestEpoch:
    """A callback that measures every epoch on the test set and keeps the best, as the authors' released code does.

    The best has the largest image AUROC, among equal ones the largest pixel AUROC. Its figures were selected on test
    labels: they compare with figures that were selected so, and say nothing about new images.
    """

    def __init__(self, images: CategoryImages, protocol: Protocol) -> None:
        self.images, self.protocol = images, protocol
        self.epoch, self.metrics = 0, dict[str, float]()

    def setup(self, estimator: Any, context: Any) -> None:
        """Start anew."""
        self.epoch, self.metrics = 0, {}

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Nothing to do."""

    def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any = None) -> bool:
        """Measure an epoch; never ends the training."""
        if context.task_name == "epoch":
            scores, maps = score(fitted_estimator, self.images)
            figures = image_figures(self.images, scores)
            if figures["image_auroc"] >= self.metrics.get("image_auroc", 0.0):  # pixel metrics take longer
                figures |= pixel_figures(fitted_estimator, self.images, maps, self.protocol)
                if not self.metrics or _rank(figures) > _rank(self.metrics):
                    self.epoch, self.metrics = int(fitted_estimator.n_iter_), figures
        return False

    def teardown(self, estimator: Any, context: Any) -> None:
        """Nothing to do."""


def _rank(figures: dict[str, float]) -> tuple[float, float]:
    return figures["image_auroc"], figures.get("pixel_auroc", 0.0)
