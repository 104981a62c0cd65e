"""Time the metrics on synthetic anomaly maps, and a plain PRO loop over 200 thresholds for comparison."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import sklearn
from scipy import ndimage

from skpbas.metrics import image_ap, image_auroc, pixel_metrics, pixel_pro

Array = np.ndarray[Any, Any]


def synthetic_case(n_maps: int, side: int, seed: int = 0) -> tuple[Array, Array]:
    """Make smooth float32 anomaly maps, and masks with one to four elliptic defects in about 70% of the images."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    masks = np.zeros((n_maps, side, side), dtype=bool)
    maps = np.empty((n_maps, side, side), dtype=np.float32)
    for mask, scores in zip(masks, maps, strict=True):
        n_defects = rng.integers(1, 5) if rng.random() < 0.7 else 0
        for _ in range(n_defects):
            row, column = rng.uniform(0, side, 2)
            height, width = rng.uniform(side / 50, side / 8, 2)
            mask |= ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1
        noise = ndimage.gaussian_filter(rng.normal(size=(side, side)), side / 64)
        scores[:] = noise / noise.std() + 2 * ndimage.gaussian_filter(mask.astype(float), side / 32)
    return masks, maps


def all_five(masks: Array, maps: Array) -> dict[str, float]:
    """Compute the image and pixel metrics; the score of an image is the largest value of its anomaly map."""
    labels, scores = masks.any(axis=(1, 2)), maps.max(axis=(1, 2))
    image = {"image_auroc": image_auroc(labels, scores), "image_ap": image_ap(labels, scores)}
    return image | pixel_metrics(masks, maps)


def threshold_loop_pro(masks: Array, maps: Array, n_thresholds: int = 200, max_fpr: float = 0.3) -> float:
    """Compute PRO in the plain way: binarize all maps at even thresholds, and measure each region's overlap."""
    regions = np.zeros(masks.shape, dtype=np.int32)
    n_regions = 0
    for mask, region in zip(masks, regions, strict=True):
        n_here = ndimage.label(mask, structure=np.ones((3, 3)), output=region)
        region[mask] += n_regions
        n_regions += n_here
    sizes = np.bincount(regions.ravel())
    fpr, pro = [0.0], [0.0]
    for threshold in np.linspace(maps.max(), maps.min(), n_thresholds):
        found = np.bincount(regions[maps >= threshold], minlength=sizes.size)
        fpr.append(found[0] / sizes[0])
        pro.append(float(np.mean(found[1:] / sizes[1:])))
    height = np.interp(max_fpr, fpr, pro)
    n_below = int(np.searchsorted(fpr, max_fpr))
    return float(np.trapezoid([*pro[:n_below], height], [*fpr[:n_below], max_fpr]) / max_fpr)


def peak_memory(compute: Callable[[], Any]) -> int:
    """Return the most bytes that a call allocates at a time."""
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    """Time, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=160, help="number of anomaly maps (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="height and width (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    parser.add_argument("--no-loop", action="store_true", help="skip the slow loop over 200 thresholds")
    args = parser.parse_args()

    masks, maps = synthetic_case(args.maps, args.side)
    contestants: dict[str, Callable[[], Any]] = {
        "all five metrics": lambda: all_five(masks, maps),
        "pixel_pro alone": lambda: pixel_pro(masks, maps),
    }
    if not args.no_loop:
        contestants["200-threshold PRO loop"] = lambda: threshold_loop_pro(masks, maps)

    results = {name: compute() for name, compute in contestants.items()}  # also the warm-up
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.repeats):
        for name, compute in contestants.items():
            start = time.perf_counter()
            compute()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}

    flags = " --no-loop" if args.no_loop else ""
    print(f"python benchmarks/metrics.py --maps {args.maps} --side {args.side} --repeats {args.repeats}{flags}")
    print(
        f"python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
        f"scikit-learn {sklearn.__version__}, {os.cpu_count()} CPUs, {sys.platform} {platform.machine()}"
    )
    print(
        f"{args.maps} float32 anomaly maps of {args.side}x{args.side} ({maps.nbytes / 2**20:.0f} MiB), "
        f"{masks.any(axis=(1, 2)).mean():.0%} of the images and {masks.mean():.1%} of the pixels defective\n"
    )
    print(f"{'':24}{'median s':>10}{'fastest s':>11}{'x pixel_pro':>13}{'peak / maps':>13}")
    for name, compute in contestants.items():
        ratio, memory = medians[name] / medians["pixel_pro alone"], peak_memory(compute) / maps.nbytes
        print(f"{name:24}{medians[name]:10.3f}{min(seconds[name]):11.3f}{ratio:13.1f}{memory:13.2f}")
    print()
    for name, result in results.items():
        figures = result if isinstance(result, dict) else {"pro": result}
        print(f"{name:24}" + ", ".join(f"{key} {figure:.6f}" for key, figure in figures.items()))


if __name__ == "__main__":
    main()
