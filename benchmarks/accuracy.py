r"""Image and pixel metrics on real categories, at the last epoch; nothing is chosen by the test images.

    python benchmarks/accuracy.py --data ../shared/data --category bottle screw \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

prints a table and appends one row per run to a CSV, with the parameters and the versions of the libraries. ``--set``
changes any parameter of the detector: ``--set alpha=0.5``, or ``--set synthesis=None center_init=mean`` for ABL alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from categories import Images, load_images, masks_at_map_size
from measure import append_rows
from safetensors.torch import load_file

import skpbas
from skpbas import PBASDetector, presets
from skpbas.core.backbones.embedded import EmbeddedBackbone
from skpbas.metrics import image_ap, image_auroc, image_partial_auroc, miss_rate, pixel_metrics

UNTRAINED = "embedded-untrained"  # the embedded architecture with random weights, for comparison

COLUMNS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_pro": "PRO",
    "misses_at_1": "miss 1 %",
    "misses_at_2": "miss 2 %",
    "misses_at_5": "miss 5 %",
    "partial_auroc": "p-AUROC 5 %",
    "false_alarms": "false alarms",
    "misses": "misses",
    "fit_seconds": "fit s",
    "ms_per_image": "ms",
}


def untrained_embedded(seed: int) -> EmbeddedBackbone:
    """Return the embedded architecture as its training starts: random convolutions, batch norms without effect."""
    torch.manual_seed(seed)
    return EmbeddedBackbone(batch_norm=True).eval()


def other_embedded(path: Path) -> EmbeddedBackbone:
    """Return the embedded architecture with the weights of a file, as the tools write it."""
    network = EmbeddedBackbone()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return network.eval()


def run(images: Images, parameters: dict[str, Any], n_train: int | None = None) -> dict[str, float]:
    """Fit on a category's training images, or on ``n_train`` of them drawn by the seed; measure on all test images."""
    train = images.train
    if n_train is not None:
        chosen = np.random.default_rng(parameters["random_state"]).permutation(len(train))[:n_train]
        train = [train[i] for i in chosen]
    start = time.perf_counter()
    if parameters["backbone"] == UNTRAINED:
        parameters = {**parameters, "backbone": untrained_embedded(parameters["random_state"])}
    elif parameters["backbone"].endswith(".safetensors"):
        parameters = {**parameters, "backbone": other_embedded(Path(parameters["backbone"]))}
    detector = PBASDetector(**parameters).fit(train)
    fit_seconds = time.perf_counter() - start
    start = time.perf_counter()
    scores, anomaly_maps = zip(*detector.iter_scores_and_maps(images.test), strict=True)
    predict_seconds = time.perf_counter() - start
    score_samples = np.array(scores)
    flagged = score_samples < detector.offset_
    anomalous = images.labels == -1
    masks = masks_at_map_size(images.masks, images.test, detector.map_shape_, detector.resize)
    return {
        "image_auroc": image_auroc(images.labels, -score_samples),
        "image_ap": image_ap(images.labels, -score_samples),
        **{f"misses_at_{rate}": miss_rate(images.labels, -score_samples, rate / 100) for rate in (1, 2, 5)},
        "partial_auroc": image_partial_auroc(images.labels, -score_samples),
        **pixel_metrics(masks, np.stack(anomaly_maps)),
        "false_alarms": float(flagged[~anomalous].mean()),
        "misses": float((~flagged)[anomalous].mean()),
        "fit_seconds": fit_seconds,
        "ms_per_image": 1000 * predict_seconds / len(images.test),
        "epochs": detector.n_iter_,
        "n_train": len(train),
    }


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", required=True)
    parser.add_argument(
        "--backbone",
        default="wide_resnet50_2",
        help=f'a backbone of the detector, "{UNTRAINED}", or a .safetensors file with weights of the embedded backbone',
    )
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--preset", default="default", choices=["default", "thorough", "paper", "reference"])
    parser.add_argument("--image-size", type=int, help="default: that of the preset")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--train-images", nargs="+", type=int, default=[None], help="number of training images, drawn by the seed"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other parameters of the detector")
    parser.add_argument("--name", default="", help="written into the column of that name")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/accuracy.csv"))
    parser.add_argument("--verbose", type=int, default=0)
    options = parser.parse_args()

    parameters = {
        **({} if options.preset == "default" else getattr(presets, options.preset.upper())),
        "backbone": options.backbone,
        "weights": None if options.weights == "none" else options.weights,
        "verbose": options.verbose,
        **({} if options.image_size is None else {"image_size": options.image_size}),
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
    print("category            seed images " + " ".join(f"{title:>12}" for title in COLUMNS.values()))
    for category in options.category:
        images = load_images(category, options.data)
        for n_train, seed in product(options.train_images, options.seeds):
            settings = {**parameters, "random_state": seed}
            result = run(images, settings, n_train)
            figures = " ".join(f"{result[column]:12.4f}" for column in COLUMNS)
            print(f"{category:19} {seed:4d} {result['n_train']:6d} {figures}", flush=True)
            row = {
                "name": options.name,
                "category": category,
                "seed": seed,
                **result,
                "parameters": json.dumps(settings),
                "versions": json.dumps(versions),
            }
            append_rows(options.output, [row])
    print(f"parameters {json.dumps(parameters)}; versions {json.dumps(versions)}; written to {options.output}")


if __name__ == "__main__":
    main()
