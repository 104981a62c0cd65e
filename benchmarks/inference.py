"""Time prediction, its lower limit (the bare backbone) and the plain formulation of the method.

    python benchmarks/inference.py

Weights are random: time does not depend on them. "whole" is everything from decoded images to image scores and
smoothed anomaly maps; "beyond backbone" is that time minus the time of its own backbone. All are measured in one run,
in turn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from measure import PeakMemory, in_child, in_turn, report
from plain import PlainMethod, normalize
from torch import Tensor, nn

from skpbas import PBASDetector
from skpbas._training.completion import scorer_precision
from skpbas.core.backbones import FeatureExtractor, build_backbone
from skpbas.core.coreset import Coreset
from skpbas.core.model import PBASModel
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.patch_scores import DiscriminatorScorer, FusedScorer, PatchScorer

LAYERS = ("layer2", "layer3")
N_DIRECTIONS = 128


def new_backbone(name: str) -> nn.Module:
    """Return a frozen backbone with random weights (the embedded one with its own)."""
    return build_backbone(name, None, LAYERS, torch.Generator().manual_seed(0)).requires_grad_(False).eval()


def new_model(name: str, size: int, patch_score: str) -> PBASModel:
    """Return what a default detector with this patch score predicts with, untrained."""
    default = PBASDetector()
    generator = torch.Generator().manual_seed(0)
    extractor = FeatureExtractor(new_backbone(name), image_size=(size, size))
    d, n_exemplars = extractor.feature_dim, default.n_exemplars
    projector = Projector(d, generator)
    discriminator = Discriminator(d, default.hidden_dim, generator, default.n_heads).eval()
    scorer: PatchScorer
    if patch_score == "discriminator":
        scorer = DiscriminatorScorer(extractor.aggregator, projector, discriminator)
    else:
        exemplars = torch.randn(n_exemplars, N_DIRECTIONS, generator=generator)
        directions = torch.linalg.qr(torch.randn(d, N_DIRECTIONS, generator=generator))[0].T
        coreset = Coreset(torch.zeros(d), directions, exemplars, torch.zeros(n_exemplars, dtype=torch.long))
        scorer = FusedScorer(extractor.aggregator, projector, discriminator, coreset)
    scorer.precision = scorer_precision(scorer, default.precision, torch.device("cpu"))
    return PBASModel(extractor, scorer, default.smoothing_sigma)


@torch.no_grad()
def predict(model: PBASModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return image scores (B,) and anomaly maps (B, H, W) of (B, 3, H, W) uint8 images."""
    scores, descriptions = model.evidence(model.extractor.feature_maps(images))
    return model.image_scores(scores, descriptions), model.anomaly_maps(scores)


def plain_method(name: str, size: int) -> PlainMethod:
    """Return the plain formulation with the detector's dimensions."""
    extractor = FeatureExtractor(new_backbone(name), image_size=(size, size))
    height, width = extractor.grid_shape
    return PlainMethod(new_backbone(name), extractor.feature_dim, height * width)


def scratch_bytes(kind: str, name: str, size: int, batch: int, patch_score: str) -> int:
    """Return the memory that a first prediction takes beyond the networks."""
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    if kind == "whole":
        model = new_model(name, size, patch_score)
        with PeakMemory() as peak:
            predict(model, images)
    else:
        plain = plain_method(name, size)
        with PeakMemory() as peak:
            plain.predict(images)
    return peak.bytes


def compare(name: str, size: int, batch: int, rounds: int, patch_score: str) -> dict[str, Any]:
    """Return one row of the table."""
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    normalized = normalize(images)
    bare, model, plain = new_backbone(name), new_model(name, size, patch_score), plain_method(name, size)
    with torch.no_grad():
        seconds = in_turn(
            {
                "bare": lambda: bare(normalized),
                "own": lambda: model.extractor.feature_maps(images),
                "whole": lambda: predict(model, images),
                "plain": lambda: plain.predict(images),
            },
            rounds,
        )
    scratch = {
        kind: in_child(scratch_bytes, kind, name, size, batch, patch_score) / 2**20 for kind in ("whole", "plain")
    }
    return {
        "backbone": name,
        "patch_score": patch_score,
        "batch": batch,
        "images/s": f"{batch / seconds['whole']:.1f}",
        "bare backbone, images/s": f"{batch / seconds['bare']:.1f}",
        "plain, images/s": f"{batch / seconds['plain']:.1f}",
        "whole / bare": f"{seconds['whole'] / seconds['bare']:.2f}",
        "beyond backbone / bare": f"{(seconds['whole'] - seconds['own']) / seconds['bare']:.3f}",
        "plain / bare": f"{seconds['plain'] / seconds['bare']:.2f}",
        "scratch MiB": f"{scratch['whole']:.0f}",
        "plain scratch MiB": f"{scratch['plain']:.0f}",
    }


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["embedded", "resnet18", "wide_resnet50_2"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="images per batch")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--patch-score", nargs="+", default=["fused", "discriminator"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    rows = [
        compare(name, options.image_size, batch, options.rounds, patch_score)
        for name in options.backbone
        for batch in options.batch
        for patch_score in options.patch_score
    ]
    report("inference", rows, options.output)


if __name__ == "__main__":
    main()
