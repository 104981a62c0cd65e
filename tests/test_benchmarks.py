"""The baseline of the speed benchmarks computes what the package computes, and the benchmarks run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from skpbas.core.aggregation import PatchAggregator
from skpbas.core.backbones import build_backbone
from skpbas.core.coreset import Coreset
from skpbas.core.maps import MapRenderer
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.patch_scores import DiscriminatorScorer, FusedScorer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import ablation  # noqa: E402
import plain  # noqa: E402

LAYERS = ("layer2", "layer3")


def test_the_plain_formulation_gives_the_same_scores_and_maps():
    backbone = build_backbone("resnet18", None, LAYERS, torch.Generator().manual_seed(0)).eval()
    method = plain.PlainMethod(backbone, 384, 64)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    scores, maps = method.predict(images)

    generator = torch.Generator().manual_seed(0)
    projector, discriminator = Projector(384, generator), Discriminator(384, 1024, generator).eval()
    projector.linear.load_state_dict(method.projector.state_dict())
    for ours, theirs in zip(
        (discriminator.hidden, discriminator.norm, discriminator.output), method.discriminator[:2], strict=False
    ):
        ours.load_state_dict(theirs.state_dict())
    discriminator.output.load_state_dict(method.discriminator[3].state_dict())
    aggregator = PatchAggregator([128, 256], 3, 384)
    scorer = DiscriminatorScorer(aggregator, projector, discriminator)
    with torch.no_grad():
        logits = scorer(aggregator.pool(backbone(plain.normalise(images))))
    torch.testing.assert_close(torch.sigmoid(logits).amax(1), scores, atol=1e-5, rtol=1e-5)
    rendered = scorer.maps(logits, MapRenderer((8, 8), (64, 64), 4.0))
    np.testing.assert_allclose(rendered.numpy(), maps, atol=1e-5)


def test_the_ablation_starts_from_the_packages_own_score():
    generator = torch.Generator().manual_seed(0)
    aggregator = PatchAggregator([4, 8], 3, 12)
    networks = Projector(12, generator, "xavier"), Discriminator(12, 8, generator).eval()
    coreset = Coreset.of([(torch.randn(200, 12, generator=generator), torch.arange(200) % 5)], 32)
    scorer = FusedScorer(aggregator, *networks, coreset)
    scorer.mean_logit, scorer.logit_std = torch.tensor(-1.5), torch.tensor(0.7)
    logit = 5 * torch.randn(3, 32, 32, generator=generator)
    distance = torch.rand(3, 32, 32, generator=generator)
    default = ablation.READINGS["default"]
    patches = default.patches(ablation.Trained(logit, torch.tensor([-1.5, 0.7]), lambda *_: distance))
    torch.testing.assert_close(patches, scorer.fuse(logit, distance))
    largest = patches.flatten(1).topk(default.largest, dim=1).values.mean(1)
    torch.testing.assert_close(largest, scorer.image_scores(patches))


def test_a_plain_step_lowers_the_loss():
    backbone = build_backbone("resnet18", None, LAYERS, torch.Generator().manual_seed(0)).eval()
    method = plain.PlainMethod(backbone, 48, 64)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    losses = [method.step(images) for _ in range(15)]
    assert losses[-1] < losses[0]


def test_the_training_benchmark_writes_its_table(tmp_path):
    options = ["--backbone", "embedded", "--image-size", "32", "--rounds", "1", "--output", str(tmp_path)]
    subprocess.run([sys.executable, BENCHMARKS / "training.py", *options], check=True, capture_output=True, text=True)
    written = json.loads((tmp_path / "training-embedded.json").read_text())
    assert len(written["rows"]) == 4
    assert written["machine"]["torch"] == torch.__version__
