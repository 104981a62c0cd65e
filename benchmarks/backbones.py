"""Time what an image costs with one backbone and another.

    python benchmarks/backbones.py

Weights are random, the embedded network's are its own: time does not depend on them. All backbones are measured in one
run, in turn. "Ratio" is the median over the rounds of the time divided by that of the first backbone in the same round,
which other programs on the machine disturb less than times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from inference import new_model, predict
from measure import report

BACKBONES = (
    "embedded",
    "resnet18",
    "wide_resnet50_2",
    "timm:efficientnet_b0",
    "timm:convnext_tiny",
    "timm:vit_small_patch14_dinov2",
)


def rounds_of(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each job in every round, after a first one as warm-up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def compare(backbones: list[str], size: int, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    images = torch.randint(256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    models = {name: new_model(name, size, "fused") for name in backbones}
    jobs: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        jobs[name] = lambda model=model: predict(model, images)
        jobs[f"{name} alone"] = lambda model=model: model.extractor.feature_maps(images)
    seconds = rounds_of(jobs, rounds)

    def ratio(job: str, reference: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[job], seconds[reference], strict=True))

    return [
        {
            "backbone": name,
            "layers": " ".join(model.extractor.backbone.layers),
            "positions": "x".join(map(str, model.extractor.grid_shape)),
            "dimensions": model.extractor.feature_dim,
            "weights, MB": f"{sum(4 * p.numel() for p in model.extractor.backbone.parameters()) / 1e6:.1f}",
            "ms, fastest": f"{1e3 * min(seconds[name]):.1f}",
            "ratio": f"{ratio(name, backbones[0]):.2f}",
            "ratio of the backbone alone": f"{ratio(f'{name} alone', f'{backbones[0]} alone'):.2f}",
        }
        for name, model in models.items()
    ]


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=list(BACKBONES), help="others are compared to the first")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report("backbones", compare(options.backbone, options.image_size, options.rounds), options.output)


if __name__ == "__main__":
    main()
