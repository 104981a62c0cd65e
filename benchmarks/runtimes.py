"""Compare exported detectors with their origin: scores, AUROC, sizes of files, and time per image.

    python benchmarks/runtimes.py --root DATA/mvtec --weights resnet18.pth

For each backbone and category a detector is fitted with the default parameters and exported. "difference": the largest
relative difference of a test image's score from that of the detector with all its products in float32; its default
rounds some to bfloat16 where the processor has instructions for it. Times are for single images, from pixels to a
result with score, label and anomaly map, all in one run, in turn, and with one thread.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import in_turn, report
from PIL import Image

from skpbas import PBASDetector, runtime
from skpbas.datasets import load_mvtec
from skpbas.export import to_onnx
from skpbas.metrics import image_auroc
from skpbas.runtime import OnnxDetector

BACKBONES = ("embedded", "resnet18")


def in_bfloat16(path: Path) -> OnnxDetector:
    """Return a detector that OpenVINO computes in bfloat16, as it would by itself."""
    before, runtime._OpenVino.precision = runtime._OpenVino.precision, "bf16"
    try:
        return OnnxDetector(path, provider="openvino", n_threads=1)
    finally:
        runtime._OpenVino.precision = before


def compare(backbone: str, weights: str, root: Path, category: str, rounds: int, every: int) -> list[dict[str, Any]]:
    """Return the rows of one backbone and category."""
    train, test = load_mvtec(root, category).images, load_mvtec(root, category, split="test")
    images, labels = list(test.images)[::every], test.labels[::every]
    detector = PBASDetector(backbone, weights=weights, random_state=0, device="cpu").fit(list(train))
    exact = copy.deepcopy(detector)
    exact.model_.patch_scorer.precision = torch.float32
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        to_onnx(detector, path)
        detectors = {
            "torch": detector,
            "torch, float32": exact,
            "ONNX Runtime": OnnxDetector(path, provider="onnxruntime", n_threads=1),
            "OpenVINO": OnnxDetector(path, provider="openvino", n_threads=1),
            "OpenVINO, bfloat16": in_bfloat16(path),
        }
        size = path.stat().st_size / 2**20
    scores = {name: one.score_samples(images) for name, one in detectors.items()}
    predicted = {name: one.predict(images) for name, one in detectors.items()}
    pixels = np.asarray(Image.open(images[0]).convert("RGB"))

    def result_of(one: Any) -> Any:
        stream = one.score_stream if isinstance(one, PBASDetector) else one.iter_results
        return lambda: list(stream([pixels]))

    seconds = in_turn({name: result_of(one) for name, one in detectors.items()}, rounds)
    expected = scores["torch, float32"]
    return [
        {
            "category": category,
            "backbone": backbone,
            "computed by": name,
            "AUROC": f"{image_auroc(labels, -scores[name]):.4f}",
            "difference": f"{np.abs(scores[name] / expected - 1).max():.1e}",
            "other labels": int((predicted[name] != predicted["torch, float32"]).sum()),
            "ms": f"{1000 * seconds[name]:.1f}",
            "time / torch": f"{seconds[name] / seconds['torch']:.2f}",
            "file, MiB": f"{size:.1f}" if isinstance(one, OnnxDetector) else "",
        }
        for name, one in detectors.items()
    ]


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of MVTec AD")
    parser.add_argument("--weights", default="imagenet", help="of resnet18: a state dict")
    parser.add_argument("--category", nargs="+", default=["bottle", "screw"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--every", type=int, default=1, help="take every so manyth test image")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for category in options.category
        for backbone in BACKBONES
        for row in compare(backbone, options.weights, options.root, category, options.rounds, options.every)
    ]
    report("runtimes", rows, options.output)


if __name__ == "__main__":
    main()
