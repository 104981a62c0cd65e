"""Image and pixel metrics on real categories: last epoch, nothing chosen on test images.

    python benchmarks/accuracy.py --data ../shared/data --category bottle screw \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

prints a table and appends one row a run to a CSV, with the settings and the versions used. ``--set alpha=0.5`` changes
any parameter of the detector, ``--set synthesis=None --set center_init="'mean'"`` gives ABL alone.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import skpbas
from skpbas import PBASDetector
from skpbas._images import Geometry
from skpbas.core.embedded import EmbeddedBackbone
from skpbas.datasets import load_mvtec
from skpbas.metrics import image_ap, image_auroc, pixel_metrics

UNTRAINED = "embedded-untrained"  # the embedded architecture with random weights, for comparison

COLUMNS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_pro": "PRO",
    "false_alarms": "false alarms",
    "misses": "misses",
    "fit_seconds": "fit s",
}


def category_root(data: Path, category: str) -> Path:
    """Return the folder that holds a category's folder: ``data`` or one of its own folders."""
    for root in (data, *sorted(p for p in data.iterdir() if p.is_dir())):
        if (root / category / "train").is_dir():
            return root
    raise SystemExit(f"--category {category}: neither {data} nor a folder in it holds {category}/train")


def masks_at_map_size(detector: PBASDetector, images: list[Path], masks: list[Path | None]) -> np.ndarray:
    """Read masks and bring them to the maps' geometry, nearest."""
    seen = np.zeros((len(images), *detector.map_shape_), bool)
    for i, mask in enumerate(masks):
        if mask is not None:
            with Image.open(mask) as opened:
                pixels = np.asarray(opened.convert("L"))
            seen[i] = Geometry.of(pixels.shape, detector.map_shape_, detector.resize).view_of_mask(pixels > 127)
    return seen


def untrained_embedded(seed: int) -> EmbeddedBackbone:
    """Return the embedded architecture as its training starts: random convolutions, batch norms without effect."""
    torch.manual_seed(seed)
    return EmbeddedBackbone(batch_norm=True).eval()


def other_embedded(path: Path) -> EmbeddedBackbone:
    """Return the embedded architecture with the weights of a file, as the tools write it."""
    network = EmbeddedBackbone()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return network.eval()


def run(root: Path, category: str, parameters: dict[str, Any]) -> dict[str, float]:
    """Fit on a category's training images and measure on all of its test images."""
    train, test = (load_mvtec(root, category, split) for split in ("train", "test"))
    start = time.perf_counter()
    if parameters["backbone"] == UNTRAINED:
        parameters = {**parameters, "backbone": untrained_embedded(parameters["random_state"])}
    elif parameters["backbone"].endswith(".safetensors"):
        parameters = {**parameters, "backbone": other_embedded(Path(parameters["backbone"]))}
    detector = PBASDetector(**parameters).fit(train.images)
    fit_seconds = time.perf_counter() - start
    scores, maps = zip(*detector.iter_scores_and_maps(test.images), strict=True)
    score_samples = np.array(scores)
    flagged = score_samples < detector.offset_
    anomalous = test.labels == -1
    return {
        "image_auroc": image_auroc(test.labels, -score_samples),
        "image_ap": image_ap(test.labels, -score_samples),
        **pixel_metrics(masks_at_map_size(detector, test.images, test.masks), np.stack(maps)),
        "false_alarms": float(flagged[~anomalous].mean()),
        "misses": float((~flagged)[anomalous].mean()),
        "fit_seconds": fit_seconds,
        "epochs": detector.n_iter_,
        "train_images": len(train.images),
    }


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", required=True)
    parser.add_argument(
        "--backbone", default="wide_resnet50_2", help=f'the estimator\'s, "{UNTRAINED}" or a .safetensors file of it'
    )
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="further parameters")
    parser.add_argument("--name", default="", help="a word for the CSV's rows")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/accuracy.csv"))
    parser.add_argument("--verbose", type=int, default=0)
    options = parser.parse_args()

    parameters = {
        "backbone": options.backbone,
        "weights": None if options.weights == "none" else options.weights,
        "image_size": options.image_size,
        "verbose": options.verbose,
    }
    for assignment in options.set:
        name, value = assignment.split("=", 1)
        try:
            parameters[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[name] = value
    versions = {
        "skpbas": skpbas.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print("category        seed " + " ".join(f"{title:>12}" for title in COLUMNS.values()))
    for category in options.category:
        root = category_root(options.data, category)
        for seed in options.seeds:
            settings = {**parameters, "random_state": seed}
            result = run(root, category, settings)
            print(f"{category:15} {seed:4d} " + " ".join(f"{result[column]:12.4f}" for column in COLUMNS), flush=True)
            row = {
                "name": options.name,
                "category": category,
                "seed": seed,
                **result,
                "parameters": json.dumps(settings),
                "versions": json.dumps(versions),
            }
            options.output.parent.mkdir(parents=True, exist_ok=True)
            fresh = not options.output.exists()
            with options.output.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if fresh:
                    writer.writeheader()
                writer.writerow(row)
    print(f"settings {json.dumps(parameters)}; versions {json.dumps(versions)}; written to {options.output}")


if __name__ == "__main__":
    main()
