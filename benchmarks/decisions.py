r"""What a user gets at the automatic thresholds: labels, "unsure", regions, and frames without a part.

    python benchmarks/decisions.py --data ../shared/data --category bottle screw \
        --backbone embedded --seeds 57 58 59 --intruders 0 0.05 0.1

With ``--intruders`` a share of the training images is replaced by defective images of the test set, which are then not
tested: whether they are found, and what is left of the accuracy. Figures at "best" thresholds use the test labels: they
are the limit of what any fixed threshold reaches, not what a user gets.
"""

from __future__ import annotations

import argparse
import time
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from categories import load_images, masks_at_map_size
from measure import append_rows
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from skpbas import PBASDetector
from skpbas.metrics import image_auroc, pixel_pro

_NEIGHBORS = np.ones((3, 3), bool)
_FOUND = 0.1  # share of a defect's area that must be marked
_THRESHOLDS = 64  # that "best" tries
_FRAMES = 8  # good images that frames are made from
RATES = (0.002, 0.01, 0.02, 0.05, 0.1)


def frames(images: list[NDArray[np.uint8]]) -> dict[str, list[NDArray[np.uint8]]]:
    """Return frames without a part, or with less than a sharp whole one, made from good images."""
    rng = np.random.default_rng(0)

    def background(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        border = np.concatenate([image[:6].reshape(-1, 3), image[-6:].reshape(-1, 3)])
        noise = rng.normal(0, min(float(border.std(0).mean()), 4.0), image.shape)
        return np.uint8(np.clip(np.median(border, axis=0) + noise, 0, 255))

    def blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        radius = max(image.shape[:2]) / 64
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))

    def covered(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        half = image.copy()
        half[:, image.shape[1] // 2 :] = 0
        return half

    def shifted_out(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        half = image.shape[1] // 2
        return np.concatenate([background(image)[:, :half], image[:, : image.shape[1] - half]], axis=1)

    makers = {
        "black": np.zeros_like,
        "white": lambda image: np.full_like(image, 255),
        "grey": lambda image: np.full_like(image, int(image.mean())),
        "noise": lambda image: rng.integers(0, 256, image.shape).astype(np.uint8),
        "background": background,
        "blurred": blurred,
        "half covered": covered,
        "shifted out": shifted_out,
    }
    return {name: [make(image) for image in images] for name, make in makers.items()}


def pixel_f1(masks: NDArray[np.bool_], marked: NDArray[np.bool_]) -> float:
    """Return the F1 of all pixels together."""
    return float(2 * (masks & marked).sum() / max(masks.sum() + marked.sum(), 1))


def of_regions(masks: NDArray[np.bool_], marked: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of defects with a tenth of their area marked, and that of marked regions on a defect."""
    found, correct = [], []
    for mask, mark in zip(masks, marked, strict=True):
        for of, other, hits, least in ((mask, mark, found, _FOUND), (mark, mask, correct, 0.0)):
            labels, n = ndimage.label(of, structure=_NEIGHBORS)
            if n:
                shares = ndimage.mean(other, labels, range(1, n + 1))
                hits += [share > least for share in shares]
    return float(np.mean(found)) if found else 1.0, float(np.mean(correct)) if correct else 1.0


def f1(recall: float, precision: float) -> float:
    """Return the harmonic mean."""
    return 2 * recall * precision / max(recall + precision, 1e-9)


def run(category: str, data: Path, parameters: dict[str, Any], intruders: float) -> dict[str, Any]:
    """Fit one detector, and measure what it decides."""
    images = load_images(category, data)
    rng = np.random.default_rng(parameters["random_state"])
    train, test, labels = list(images.train), list(images.test), np.asarray(images.labels)
    masks = list(images.masks)
    among = rng.permutation(np.flatnonzero(labels == -1))[: round(intruders * len(train))]
    positions = rng.permutation(len(train))[: len(among)]
    for position, defective in zip(positions, among, strict=True):
        train[position] = test[defective]
    kept = np.setdiff1d(np.arange(len(test)), among)
    test, labels, masks = [test[i] for i in kept], labels[kept], [masks[i] for i in kept]

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ training images look defective")
        detector = PBASDetector(**parameters).fit(train)
    seconds = time.perf_counter() - start
    scores, maps = zip(*detector.iter_scores_and_maps(test), strict=True)
    scores, maps = np.array(scores), np.stack(maps)
    verdicts = detector._judge().verdicts(scores)
    flagged_at = {rate: scores < detector._judge(rate).unsure_offset for rate in RATES}
    good, missed = labels == 1, (labels == -1) & (verdicts != "anomalous")
    masks = masks_at_map_size(masks, test, detector.map_shape_, detector.resize)
    recall, precision = of_regions(masks, maps > detector.map_threshold_)
    thresholds = [detector.map_threshold_, *np.quantile(maps, 1 - np.geomspace(1e-4, 0.3, _THRESHOLDS))]
    listed = np.isin(detector.training_outliers_, positions)
    base = [np.asarray(load(test[i])) for i in np.flatnonzero(good)[:_FRAMES]]
    return {
        "image_auroc": image_auroc(labels, -scores),
        "pixel_pro": pixel_pro(masks, maps),
        "false_alarms": float((verdicts[good] == "anomalous").mean()),
        "misses": float(missed.sum() / (~good).sum()),
        "listed": float(listed.sum() / len(among)) if len(among) else float("nan"),
        "clean_left_out": float((~listed).sum() / (len(train) - len(among))),
        "good_unsure": float((verdicts[good] == "unsure").mean()),
        "misses_unsure": float((verdicts[missed] == "unsure").mean()) if missed.any() else float("nan"),
        **{f"false_alarms_at_{rate}": float(flagged[good].mean()) for rate, flagged in flagged_at.items()},
        **{f"misses_at_{rate}": float((~flagged[~good]).mean()) for rate, flagged in flagged_at.items()},
        "pixel_f1": pixel_f1(masks, maps > detector.map_threshold_),
        "best_pixel_f1": max(pixel_f1(masks, maps > threshold) for threshold in thresholds),
        "region_recall": recall,
        "region_precision": precision,
        "best_region_f1": max(f1(*of_regions(masks, maps > threshold)) for threshold in thresholds),
        **{
            f"flagged {name}": float((detector.predict(made) == -1).mean())
            for name, made in (frames(base) if not intruders else {}).items()
        },
        "fit_seconds": seconds,
    }


def load(image: Any) -> Image.Image:
    """Return an image in color."""
    return (Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image)).convert("RGB")


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", required=True)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights", default="imagenet", help='"imagenet" or a state-dict file')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--intruders", nargs="+", type=float, default=[0.0], help="shares of the training images")
    parser.add_argument("--trust", action="store_true", help="exclude_outliers=False")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/decisions.csv"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*the good images of fit")  # frames are meant to differ
    for category, share, seed in product(options.category, options.intruders, options.seeds):
        parameters = {"backbone": options.backbone, "weights": options.weights, "random_state": seed}
        parameters["exclude_outliers"] = not options.trust
        result = run(category, options.data, parameters, share)
        print(category, share, seed, " ".join(f"{name} {value:.3f}" for name, value in result.items()), flush=True)
        settings = {"category": category, "backbone": options.backbone, "intruders": share, "seed": seed}
        append_rows(options.output, [{**settings, "exclude_outliers": not options.trust, **result}])


if __name__ == "__main__":
    main()
