"""Write the small saved detector of format 1, and what it must return, that a test opens in every later version.

    python tools/make_saved_detector.py tests/data/format_1

It has been run once. A format gets a file of its own; that of an earlier one is never written again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from skpbas import PBASDetector
from skpbas.datasets import make_inspection_images

SIDE = 32


def new_detector() -> PBASDetector:
    """Return a detector whose file has a few kilobytes."""
    return PBASDetector(
        "embedded",
        layers=["layer1", "layer2"],
        feature_dim=48,
        image_size=SIDE,
        hidden_dim=8,
        n_exemplars=32,
        max_epochs=4,
        precision="float32",
        device="cpu",
        random_state=0,
    )


def main() -> None:
    """Parse the command line and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="without suffix")
    options = parser.parse_args()
    data = make_inspection_images(8, 2, kind="fabric", size=SIDE, random_state=0)
    good, images = data.images[data.labels == 1], data.images[-4:].copy()
    images[-1, :, ::2] = 255 - images[-1, :, ::2]  # no detector takes this for normal
    detector = new_detector().fit(good)
    saved = options.output.with_suffix(".skpbas")
    detector.save(saved)
    results = {"scores": detector.score_samples(images), "maps": detector.anomaly_map(images)}
    results |= {"labels": detector.predict(images), "p_values": detector.p_values(images)}
    np.savez_compressed(options.output.with_suffix(".npz"), images=images, **results)
    print(f"{saved}: {saved.stat().st_size} bytes")


if __name__ == "__main__":
    main()
