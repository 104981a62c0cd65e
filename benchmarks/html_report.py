"""Measure the HTML report: bytes of the file, and seconds until Chromium has opened it.

    python benchmarks/html_report.py

The images are generated, 700 x 900 pixels: fabric, and noise, which no JPEG makes small. Scores and anomaly maps of 256
x 256 pixels are random: the page is measured and not the detector. Opening needs playwright and Chromium; a time is the
median of five new tabs, from the request to the first picture in the table.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import report
from numpy.typing import NDArray
from scipy import ndimage

from skpbas import Result
from skpbas.datasets import make_inspection_images
from skpbas.inspection import write_report

HEIGHT, WIDTH, N_KINDS, N_TABS = 700, 900, 10, 5


class RandomDetector:
    """Scores and smooth anomaly maps from a random generator."""

    map_shape_, offset_, map_threshold_, resize = (256, 256), -1.0, 0.6, "stretch"

    def score_stream(self, images: Any, *, on_error: str, maps: bool) -> Iterator[Result]:
        """Yield a result for each image."""
        rng = np.random.default_rng(0)
        for index, _ in enumerate(images):
            score = float(rng.normal(-0.6, 0.3))
            smooth = ndimage.gaussian_filter(rng.random(self.map_shape_, np.float32), 6)
            anomaly_map = rng.uniform(0.4, 1) * (smooth - smooth.min()) / np.ptp(smooth)
            label, verdict = (1, "normal") if score >= self.offset_ else (-1, "anomalous")
            yield Result(index, f"images[{index}]", score, label, 0.5, np.float32(anomaly_map), None, verdict)


def images_of(kind: str) -> list[NDArray[np.uint8]]:
    """Return ten different images."""
    if kind == "noise":
        return list(np.random.default_rng(0).integers(0, 256, (N_KINDS, HEIGHT, WIDTH, 3), np.uint8))
    return list(make_inspection_images(N_KINDS, 0, kind=kind, size=WIDTH, random_state=0).images[:, :HEIGHT])


def seconds_to_open(path: Path) -> float | None:
    """Return the seconds until the first picture of the table is there, or None without a browser."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if program is None:
        return None
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(N_TABS):
            tab = browser.new_page(viewport={"width": 1280, "height": 2000})
            start = time.perf_counter()
            tab.goto(path.as_uri())
            tab.wait_for_selector("#table tbody tr:first-child svg")
            times.append(time.perf_counter() - start)
            tab.close()
        browser.close()
    return statistics.median(times)


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-images", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        for kind in ("fabric", "noise"):
            images = images_of(kind)
            start = time.perf_counter()
            write_report(RandomDetector(), [images[i % N_KINDS] for i in range(options.n_images)], path)
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "images": kind,
                    "n": options.n_images,
                    "file, MB": f"{path.stat().st_size / 1e6:.1f}",
                    "ms per image": f"{1000 * seconds / options.n_images:.0f}",
                    "s to open": "" if (opened := seconds_to_open(path)) is None else f"{opened:.2f}",
                }
            )
    report("html_report", rows, options.output)


if __name__ == "__main__":
    main()
