r"""What bfloat16 changes in prediction: one trained detector in float32, with its head and entirely in bfloat16.

    python benchmarks/precision.py --data ../shared/data --category bottle screw commutator \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

Training is that of ``precision="auto"``. The condition for a default: a rank correlation above 0.999, and an image
AUROC within 0.001. Times are those of the processor, over all threads. Without the matrix unit of a processor that has
one: with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from categories import Images, load_images, masks_at_map_size
from measure import report
from scipy.stats import spearmanr

from skpbas import PBASDetector
from skpbas.metrics import image_auroc, pixel_pro

PRECISIONS = {  # of the backbone and of the head
    "float32": (torch.float32, torch.float32),
    "head in bfloat16": (torch.float32, torch.bfloat16),
    "all in bfloat16": (torch.bfloat16, torch.bfloat16),
}


def compare(name: str, images: Images, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per precision."""
    detector = PBASDetector(**parameters).fit(images.train)
    masks = masks_at_map_size(images.masks, images.test, detector.map_shape_, detector.resize)
    rows: list[dict[str, Any]] = []
    exact = np.empty(0)
    for precision, (of_backbone, of_head) in PRECISIONS.items():
        detector.model_.extractor.precision = of_backbone
        detector.model_.patch_scorer.precision = of_head
        start = time.process_time()
        scores, anomaly_maps = zip(*detector.iter_scores_and_maps(images.test), strict=True)
        seconds = time.process_time() - start
        image_scores = -np.array(scores)
        exact = image_scores if of_head == torch.float32 else exact
        rows.append(
            {
                "category": name,
                "patch_score": detector.patch_score,
                "precision": precision,
                "rank correlation": f"{spearmanr(exact, image_scores).statistic:.5f}",
                "image AUROC": f"{image_auroc(images.labels, image_scores):.4f}",
                "PRO": f"{pixel_pro(masks, np.stack(anomaly_maps)):.4f}",
                "CPU ms per image": f"{1000 * seconds / len(images.test):.0f}",
            }
        )
    return rows


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", required=True)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--patch-score", nargs="+", default=["fused", "discriminator"])
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    parameters = {
        "backbone": options.backbone,
        "weights": None if options.weights == "none" else options.weights,
        "random_state": options.seed,
        "contamination": 0.01,  # the threshold plays no part here
    }
    rows = [
        row
        for name in options.category
        for patch_score in options.patch_score
        for row in compare(name, load_images(name, options.data), {**parameters, "patch_score": patch_score})
    ]
    report("precision", rows, options.output)


if __name__ == "__main__":
    main()
