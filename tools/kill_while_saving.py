"""Kill a process that saves a detector, many times, and open what is there: the old file, the new one, or none.

    python tools/kill_while_saving.py --n 100

Each process saves one of two detectors over and over, under one name; it is killed after a random time. What
``skpbas.load`` then opens must give the scores of one of the two, to the last bit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

import skpbas
from skpbas.datasets import make_inspection_images


def save_for_ever(sources: list[str], target: str, ready: str) -> None:
    """Save two detectors in turn, until somebody ends the process."""
    detectors = [skpbas.load(source, device="cpu") for source in sources]
    Path(ready).touch()
    while True:
        for detector in detectors:
            detector.save(target)


def main() -> None:
    """Parse the command line, kill, open and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="processes to kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    images = make_inspection_images(n_normal=12, n_anomalous=0, size=64, random_state=0).images
    context = multiprocessing.get_context("spawn")
    n_opened = n_wrong = n_unfinished = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources, expected = [], []
        for seed in (0, 1):
            detector = skpbas.PBASDetector("embedded", image_size=64, max_epochs=2, random_state=seed).fit(images)
            sources.append(str(folder / f"source_{seed}.skpbas"))
            detector.save(sources[-1])
            expected.append(detector.score_samples(images))
        (folder / "kept").mkdir()
        target, ready = folder / "kept" / "part.skpbas", folder / "ready"
        for _ in range(options.n):
            process = context.Process(target=save_for_ever, args=(sources, str(target), str(ready)))
            process.start()
            while not ready.exists():
                time.sleep(0.01)
            time.sleep(float(rng.uniform(0, 0.5)))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            ready.unlink()
            n_unfinished += sum(path != target for path in target.parent.iterdir())
            for path in target.parent.iterdir():
                if path != target:
                    path.unlink()
            if target.exists():
                n_opened += 1
                scores = skpbas.load(target, device="cpu").score_samples(images)
                n_wrong += not any(np.array_equal(scores, one) for one in expected)
    print(f"{options.n} processes killed: {n_opened} times a file, {n_wrong} times neither of the two that were saved")
    print(f"{n_unfinished} of them left an unfinished file with a hidden name")
    if n_wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
