"""The plain implementation matches the package, ablations change what they name, and benchmarks run."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT

from skpbas import PBASDetector
from skpbas._training.settings import n_epochs
from skpbas.core.aggregation import PatchAggregator
from skpbas.core.backbones import build_backbone
from skpbas.core.coreset import Coreset
from skpbas.core.maps import MapRenderer
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.objective import PBASObjective
from skpbas.core.patch_scores import DiscriminatorScorer, FusedScorer

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import ablation  # noqa: E402
import plain  # noqa: E402

LAYERS = ("layer2", "layer3")


def test_the_plain_implementation_gives_the_same_scores_and_anomaly_maps():
    backbone = build_backbone("resnet18", None, LAYERS, torch.Generator().manual_seed(0)).eval()
    method = plain.PlainMethod(backbone, 384, 64)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    scores, anomaly_maps = method.predict(images)

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
        logits = scorer(aggregator.pool(backbone(plain.normalize(images))))
    torch.testing.assert_close(torch.sigmoid(logits).amax(1), scores, atol=1e-5, rtol=1e-5)
    rendered = scorer.maps(logits, MapRenderer((8, 8), (64, 64), 4.0))
    np.testing.assert_allclose(rendered.numpy(), anomaly_maps, atol=1e-5)


def test_a_scoring_variant_of_the_ablation_is_the_score_of_the_package():
    generator = torch.Generator().manual_seed(0)
    aggregator = PatchAggregator([4, 8], 3, 12)
    networks = Projector(12, generator, "xavier"), Discriminator(12, 8, generator).eval()
    coreset = Coreset.of([(torch.randn(200, 12, generator=generator), torch.arange(200) % 5)], 32)
    scorer = FusedScorer(aggregator, *networks, coreset)
    scorer.mean_logit, scorer.logit_std = torch.tensor(-1.5), torch.tensor(0.7)
    logits = 5 * torch.randn(3, 32, 32, generator=generator)
    distance = torch.rand(3, 32, 32, generator=generator)
    variant = ablation.SCORINGS["mean of the largest 1 %, smoothed"]
    patches = variant.patches(ablation.Trained(logits, torch.tensor([-1.5, 0.7]), lambda *_: distance))
    torch.testing.assert_close(patches, scorer.fuse(logits, distance))
    torch.testing.assert_close(variant.image_scores(patches), scorer.image_scores(patches.flatten(1), (32, 32)))


def objective_and_features(make=PBASObjective, **options):
    """An objective of dimension 6 with 5 centers, made by ``make``, and 40 features."""
    generator = torch.Generator().manual_seed(0)
    networks = Projector(6, generator), Discriminator(6, 8, generator, 2)
    center, features = torch.rand(5, 6, generator=generator), torch.rand(40, 6, generator=generator)
    settings = {"synthesis": "ray", "alpha": 0.3, "noise_std": 0.015, "generator": generator}
    return make(*networks, center, **settings, **options), features


def test_the_hardest_patches_are_those_farthest_from_their_centers():
    objective, features = objective_and_features(ablation.HardestPatches, n_hardest=4)
    nearest = objective.center[objective.nearest(features)]  # the initial projector is the identity
    distances = torch.linalg.vector_norm(features - nearest, dim=1)
    torch.testing.assert_close(objective(features).center_loss, distances.sort().values[-4:].mean())


def test_random_alphas_cover_their_interval():
    objective, features = objective_and_features(ablation.RandomAlpha, low=0.1, high=0.5)
    terms = objective(features)
    degrees = torch.linalg.vector_norm(terms.anomalies - terms.projected, dim=1) / terms.center_loss
    assert 0.1 < degrees.min() < 0.15
    assert 0.45 < degrees.max() < 0.5


def test_an_annealed_alpha_ends_at_its_last_value():
    net = SimpleNamespace(max_epochs=3, batch_size=8, module_=objective_and_features()[0])
    callback = ablation.AnnealedAlpha(0.6, 0.2)
    callback.on_train_begin(net, X=range(20))
    alphas = []
    for _ in range(9):
        callback.on_batch_begin(net)
        alphas.append(net.module_.alpha)
    assert alphas == pytest.approx(np.linspace(0.6, 0.2, 10)[1:])


def test_centers_by_distance_may_differ_from_centers_by_similarity():
    objective, features = objective_and_features(ablation.NearestByDistance)
    distances = (features[:, None] - objective.center).square().sum(2)
    assert torch.equal(objective.nearest(features), distances.argmin(1))
    assert not torch.equal(objective.nearest(features), objective_and_features()[0].nearest(features))


def test_fewer_centers_are_a_subset_of_all():
    whole = objective_and_features()[0].center
    center = objective_and_features(ablation.FewerCenters, n_centers=3)[0].center
    assert center.shape == (3, 6)
    assert (center[:, None] == whole).all(2).sum() == 3


def test_dropout_is_active_in_training_only():
    objective, features = objective_and_features(ablation.HiddenDropout, rate=0.5)
    default = objective_and_features()[0].eval()
    assert torch.equal(objective.eval().discriminator(features), default.discriminator(features))
    objective.train()
    assert not torch.equal(objective(features).normal_logits, objective(features).normal_logits)


def test_ablations_of_the_steps_change_the_number_of_epochs():
    settings = PBASDetector()._training_settings()

    def epochs(name):
        changed = ablation.TRAININGS[name]
        sufficient = {"sufficient_steps": changed.sufficient_steps, "sufficient_epochs": changed.sufficient_epochs}
        return [n_epochs(settings, n_images, **sufficient) for n_images in (80, 8000)]

    assert epochs("default") == [60, 24]
    assert epochs("half the steps") == [30, 12]
    assert epochs("twice the steps") == [120, 48]


def test_the_recorded_rows_name_existing_ablations():
    with (BENCHMARKS / "ablation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["training"] for row in rows} <= set(ablation.TRAININGS)
    assert {row["scoring"] for row in rows} <= set(ablation.SCORINGS | ablation.CORESET_SCORINGS)
    assert ablation.summary(rows)[0]["training"] == "default"


def test_plain_training_steps_lower_the_loss():
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
