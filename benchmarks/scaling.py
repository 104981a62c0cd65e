"""Time and memory by the number of images, each number in its own process.

    python benchmarks/scaling.py

Images are generated once and written to PNG files, whose paths are passed repeatedly. Memory is what a call takes
beyond what the process held before it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from measure import PeakMemory, in_child, report
from PIL import Image

from skpbas import PBASDetector
from skpbas.datasets import make_inspection_images

N_FILES = 50


def write_images(folder: Path, side: int) -> list[Path]:
    """Write generated images; return their paths."""
    images = make_inspection_images(n_normal=N_FILES, n_anomalous=0, size=side, random_state=0).images
    paths = [folder / f"{i:03d}.png" for i in range(N_FILES)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def repeated(paths: list[Path], n: int) -> list[Path]:
    """Return n paths by repeating the given ones."""
    return (paths * -(-n // len(paths)))[:n]


def fit(paths: list[Path], n: int, parameters: dict[str, Any]) -> tuple[float, int]:
    """Return seconds and bytes of a fit on n images."""
    with PeakMemory() as peak:
        start = time.perf_counter()
        PBASDetector(**parameters).fit(repeated(paths, n))
        seconds = time.perf_counter() - start
    return seconds, peak.bytes


def predict(paths: list[Path], n: int, parameters: dict[str, Any]) -> tuple[float, int]:
    """Return seconds and bytes of scoring n images, anomaly maps included, with a detector fitted on a few."""
    detector = PBASDetector(**{**parameters, "max_epochs": 1}).fit(paths[:8])
    deque(detector.iter_scores_and_maps(paths[:8]), maxlen=0)
    with PeakMemory() as peak:
        start = time.perf_counter()
        deque(detector.iter_scores_and_maps(repeated(paths, n)), maxlen=0)
        seconds = time.perf_counter() - start
    return seconds, peak.bytes


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights", default="none", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--image-side", type=int, default=512, help="side of the image files in pixels")
    parser.add_argument("--fit", nargs="+", type=int, default=[50, 200, 1000], help="numbers of images")
    parser.add_argument("--predict", nargs="+", type=int, default=[50, 500, 5000], help="numbers of images")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    weights = None if options.weights == "none" else options.weights
    parameters = {"backbone": options.backbone, "weights": weights, "random_state": 0}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), options.image_side)
        for function, counts in ((fit, options.fit), (predict, options.predict)):
            measured = [in_child(function, paths, n, parameters) for n in counts]
            slope = np.polyfit(counts, [seconds for seconds, _ in measured], 1)[0] if len(counts) > 1 else np.nan
            rows += [
                {
                    "call": function.__name__,
                    "images": n,
                    "seconds": f"{seconds:.1f}",
                    "ms per image": f"{1e3 * seconds / n:.1f}",
                    "slope, ms per image": f"{1e3 * slope:.1f}",
                    "MiB": f"{held / 2**20:.0f}",
                }
                for n, (seconds, held) in zip(counts, measured, strict=True)
            ]
    report(f"scaling-{options.backbone}", rows, options.output)


if __name__ == "__main__":
    main()
