"""Time prediction beside the bare backbone (its limit) and beside the plain formulation of the method.

    python benchmarks/inference.py

Weights are random: time does not depend on them. "whole" is all that the detector does with decoded images up to
scores and smoothed maps; "beyond backbone" is its time less that of its own backbone. All in one run, in turn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from measure import PeakMemory, in_child, in_turn, report
from plain import PlainMethod, normalise
from torch import Tensor, nn

from skpbas import PBASDetector
from skpbas._training.loop import scorer_arithmetic
from skpbas.core.backbones import FeatureExtractor, build_backbone
from skpbas.core.coreset import N_DIRECTIONS, N_EXEMPLARS, Coreset
from skpbas.core.maps import MapRenderer
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.patch_scores import DiscriminatorScorer, FusedScorer

LAYERS = ("layer2", "layer3")


def new_backbone(name: str) -> nn.Module:
    """Return a frozen backbone with random weights (the embedded one with its own)."""
    return build_backbone(name, None, LAYERS, torch.Generator().manual_seed(0)).requires_grad_(False).eval()


def _default_discriminator(d: int, generator: torch.Generator) -> Discriminator:
    default = PBASDetector()
    return Discriminator(d, default.hidden_dim, generator, default.n_heads).eval()


class Whole:
    """What the detector runs, from decoded images to scores and maps."""

    def __init__(self, name: str, size: int, score: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.extractor = FeatureExtractor(new_backbone(name), image_size=(size, size))
        d = self.extractor.feature_dim
        networks = Projector(d, generator), _default_discriminator(d, generator)
        if score == "discriminator":
            self.scorer: Any = DiscriminatorScorer(self.extractor.aggregator, *networks)
        else:
            exemplars = torch.randn(N_EXEMPLARS, N_DIRECTIONS, generator=generator)
            directions = torch.linalg.qr(torch.randn(d, N_DIRECTIONS, generator=generator))[0].T
            coreset = Coreset(torch.zeros(d), directions, exemplars, torch.zeros(N_EXEMPLARS, dtype=torch.long))
            self.scorer = FusedScorer(self.extractor.aggregator, *networks, coreset)
        self.scorer.precision = scorer_arithmetic(self.scorer, "auto", torch.device("cpu"))
        self.renderer = MapRenderer(self.extractor.grid_shape, (size, size), 4.0)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return image scores and maps."""
        scores = self.scorer(self.extractor.aggregator.pool(self.extractor.feature_maps(images)))
        return self.scorer.image_scores(scores), self.scorer.maps(scores, self.renderer)


def scratch_bytes(kind: str, name: str, size: int, batch: int, score: str) -> int:
    """Return the memory that a first prediction takes beyond the networks."""
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    predict: Any = Whole(name, size, score) if kind == "whole" else plain_method(name, size).predict
    with PeakMemory() as peak:
        predict(images)
    return peak.bytes


def plain_method(name: str, size: int) -> PlainMethod:
    """Return the plain formulation with the detector's dimensions."""
    extractor = FeatureExtractor(new_backbone(name), image_size=(size, size))
    height, width = extractor.grid_shape
    return PlainMethod(new_backbone(name), extractor.feature_dim, height * width)


def compare(name: str, size: int, batch: int, rounds: int, score: str) -> dict[str, Any]:
    """Return one row of the table."""
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    normalised = normalise(images)
    bare, whole, plain = new_backbone(name), Whole(name, size, score), plain_method(name, size)
    with torch.no_grad():
        seconds = in_turn(
            {
                "bare": lambda: bare(normalised),
                "own": lambda: whole.extractor.feature_maps(images),
                "whole": lambda: whole(images),
                "plain": lambda: plain.predict(images),
            },
            rounds,
        )
    scratch = {kind: in_child(scratch_bytes, kind, name, size, batch, score) / 2**20 for kind in ("whole", "plain")}
    return {
        "backbone": name,
        "score": score,
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
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--score", nargs="+", default=["fused", "discriminator"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    rows = [
        compare(name, options.image_size, batch, options.rounds, score)
        for name in options.backbone
        for batch in options.batch
        for score in options.score
    ]
    report("inference", rows, options.output)


if __name__ == "__main__":
    main()
