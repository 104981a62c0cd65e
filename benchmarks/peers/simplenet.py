"""SimpleNet with the parts of skpbas: Gaussian synthesis, no centers.

Liu, Zhou, Xu, Wang: "SimpleNet: A Simple Network for Image Anomaly Detection and Localization", CVPR 2023. Its
equations, in words and in its order, and what computes them here:

- Local features: neighborhoods of p x p positions of each level, pooled, levels brought to the size of the first and
  concatenated: :class:`skpbas.core.backbones.FeatureExtractor`, with ``patch_size=3`` and layers 2 and 3.
- Adaptor q = G(o), one linear layer: :class:`skpbas.core.networks.Projector`, ``projector_init="xavier"``.
- Anomalies q- = q + e, e of N(0, sigma^2) in each dimension, sigma = 0.015:
  :func:`skpbas.core.synthesis.gaussian`, ``noise_std=0.015``.
- Discriminator D, positive for normal features: linear, batch norm, leaky ReLU (0.2), linear, 1,024 hidden units:
  :class:`skpbas.core.networks.Discriminator`, ``n_heads=1, hidden_dim=1024``. Its logit is -D.
- Loss max(0, th - D(q)) + max(0, th + D(q-)), th = 0.5, averaged over patches:
  :class:`SimpleNetObjective`. There is no loss of distances to centers.
- Scores: -D(q) of a patch, the largest of an image; a map is upsampled and smoothed, sigma = 4.

What differs from the publication: the backbone and its input, which are those of all methods here; features have as
many dimensions as the levels have channels (384), not 1,536; the detector of the last epoch is measured, not the one
that is best on the test set; and, with "simplenet", training is as short as that of skpbas: 24 epochs or 600 steps of
1,024 patches, whose learning rates, 1e-3 and 5e-4, fall to 0. "simplenet-published" trains for 160 epochs on every
patch, with constant rates of 1e-4 and 2e-4, which takes about fifty times as long. Weights of D decay decoupled from
the gradient.

The authors' released code (DonaldRR/SimpleNet on GitHub, ``simplenet.py`` and ``run.sh``) was read beside this file:
the networks and their initial values, the noise, the loss, one batch of both kinds of features, both scores and the
values above are the same there, except that its adaptor decays by AdamW's default of 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from head_training import train
from numpy.typing import NDArray
from torch import Tensor

from skpbas import PBASDetector
from skpbas._features.reading import Reading
from skpbas._features.sampling import TrainingFeatures
from skpbas.core.maps import MapRenderer
from skpbas.core.model import PBASModel
from skpbas.core.objective import PBASObjective, StepTerms
from skpbas.core.patch_scores import DiscriminatorScorer
from skpbas.core.synthesis import gaussian

MARGIN = 0.5
"""th: how far from 0 a logit costs nothing."""

SETTINGS: dict[str, Any] = {
    "layers": ("layer2", "layer3"),
    "patch_size": 3,
    "center_init": "mean",  # computed by the training of skpbas, and not used
    "synthesis": "gaussian",
    "noise_std": 0.015,
    "projector_init": "xavier",
    "n_heads": 1,
    "hidden_dim": 1024,
    "projector_decay": 1e-5,
    "discriminator_decay": 1e-5,
    "patch_score": "discriminator",
    "smoothing_sigma": 4.0,
    "precision": "float32",
}

PUBLISHED_TRAINING: dict[str, Any] = {
    "max_epochs": 160,
    "patches_per_step": None,
    "schedule": "constant",
    "projector_lr": 1e-4,
    "discriminator_lr": 2e-4,
}


class _TermsWithoutCenter(StepTerms):
    def losses(self) -> dict[str, Tensor]:
        """Return the two terms of SimpleNet's loss by name."""
        return {name: term for name, term in super().losses().items() if name != "center"}


class SimpleNetObjective(PBASObjective):
    """SimpleNet's loss of a step; the center set is not used."""

    def forward(self, features: Tensor) -> StepTerms:
        """Compute the terms for (N, d) patch features o."""
        assert self.discriminator is not None
        q = self.projector(features)
        anomalies = gaussian(q, self.noise_std, self.generator)
        logits = self.discriminator.head_logits(torch.cat([q, anomalies]))  # one batch, so that BatchNorm sees both
        normal, anomaly = logits.chunk(2)
        return _TermsWithoutCenter(
            projected=q,
            nearest=torch.zeros(len(q), dtype=torch.int64, device=q.device),
            center_loss=q.new_zeros(()),
            anomalies=anomalies,
            normal_logits=normal,
            anomaly_logits=anomaly,
            normal_loss=(MARGIN + normal).clamp_min(0).mean(),
            anomaly_loss=(MARGIN - anomaly).clamp_min(0).mean(),
        )


class _LogitScorer(DiscriminatorScorer):
    def maps(self, scores: Tensor, renderer: MapRenderer) -> Tensor:
        """Return maps (B, H, W) of logits, not of probabilities."""
        return renderer(scores)


class SimpleNet:
    """SimpleNet on images of files.

    Parameters
    ----------
    weights : Path
        State dict of torchvision's ResNet18.
    image_size : int
    resize : {"stretch", "aspect"}
    seed : int
    training : dict of str to object
        Parameters of the training; none: those of skpbas.
    """

    def __init__(self, weights: Path, image_size: int, resize: str, seed: int, **training: Any) -> None:
        self.seed = seed
        self.detector = PBASDetector(
            "resnet18", weights=weights, image_size=image_size, resize=resize, device="cpu", **SETTINGS, **training
        )

    def fit(self, paths: Sequence[Path]) -> None:
        """Train on good images."""
        generator = torch.Generator().manual_seed(self.seed)
        self.reading, items = Reading.planned(self.detector, paths, np.arange(len(paths)))
        self.extractor = self.reading.new_extractor(self.detector, generator)
        level_maps = self.reading.level_maps(items, self.extractor, self.detector)
        store = level_maps.store(range(len(paths)), torch.float16, show_progress=False)
        features = TrainingFeatures(
            store, torch.arange(len(paths)), self.extractor.aggregator, torch.device("cpu"), generator
        )
        objective = train(features, self.detector._training_settings(), SimpleNetObjective)
        assert objective.discriminator is not None
        scorer = _LogitScorer(self.extractor.aggregator, objective.projector, objective.discriminator)
        self.model = PBASModel(self.extractor, scorer, self.detector.smoothing_sigma)

    @torch.no_grad()
    def predict(self, path: Path) -> tuple[float, NDArray[np.float32]]:
        """Return the score and the anomaly map of an image; higher is more anomalous."""
        batch = next(self.reading.level_maps([path], self.extractor, self.detector).batches([0]))
        scores, _ = self.model.evidence(next(batch.chunks))
        return float(self.model.image_scores(scores)), self.model.anomaly_maps(scores)[0].numpy()

    def save(self, path: Path) -> None:
        """Write what prediction needs."""
        torch.save(self.model.state_dict(), path)
