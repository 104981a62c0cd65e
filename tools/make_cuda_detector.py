"""Write the small pickle of a detector fitted on a GPU that a test opens on every machine.

    python tools/make_cuda_detector.py tests/data/cuda_detector.pkl

With a CUDA device the detector is fitted on it. Without one it is fitted on the CPU and then takes the state of one
that was not: its tensors are saved from the CPU in both cases, and what differs is the device that it asks for.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from skpbas import PBASDetector
from skpbas.datasets import make_inspection_images

SIDE = 32


def new_detector(device: str) -> PBASDetector:
    """Return a detector whose pickle has a few kilobytes."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.Conv2d(6, 8, 2, 2))
    return PBASDetector(
        backbone,
        layers=["1", "2"],
        image_size=SIDE,
        hidden_dim=8,
        n_exemplars=32,
        max_epochs=4,
        precision="float32",
        device=device,
        random_state=0,
    )


def make_state() -> dict[str, Any]:
    """Return the detector, the images that it was fitted on, and their scores."""
    images = make_inspection_images(6, 0, kind="fabric", size=SIDE, random_state=0).images
    on_gpu = torch.cuda.is_available()
    detector = new_detector("cuda" if on_gpu else "cpu").fit(images)
    scores = detector.score_samples(images)
    detector.set_params(device="cuda")
    if not on_gpu:
        detector.device_ = torch.device("cuda", 0)
    return {"detector": detector, "images": images, "scores": scores}


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.write_bytes(pickle.dumps(make_state(), protocol=4))
    print(f"{options.output}: {options.output.stat().st_size} bytes, numpy {np.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
