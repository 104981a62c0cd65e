"""From a trained head to a fitted detector: the model for prediction and its threshold."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skpbas._features.sampling import TrainingFeatures
from skpbas._training.exemplars import TrainingPatchScores, fused_scorer
from skpbas._training.loop import TrainedHead, train_head
from skpbas._training.settings import TrainingSettings, n_epochs
from skpbas._training.threshold import SMALLEST_SPLIT, auto_offset, offset_of_ratios
from skpbas.core.backbones import FeatureExtractor
from skpbas.core.devices import discriminator_precision, inference_batch
from skpbas.core.model import PBASModel
from skpbas.core.patch_scores import (
    DiscriminatorScorer,
    DistanceScorer,
    ExemplarScorer,
    PatchScorer,
    SummedScorer,
    fill_ignored,
)
from skpbas.core.tiling import Tiling
from skpbas.core.whole_images import WholeImages, describe
from skpbas.errors import TrainingError

LARGEST_PEAK = 1 - 1e-6  # of an anomaly map
_SMALLEST_UNIT = 0.1  # of a usual score, if all training images have one score


class Completion:
    """The model of a trained head and its threshold, each computed on first access.

    Parameters
    ----------
    extractor : FeatureExtractor
        Source of the features.
    of_scales : sequence of TrainingFeatures
        The training features of the head and, behind them, those of scales below 1, whose heads are trained on first
        access, for as many epochs.
    head : TrainedHead
    settings : TrainingSettings
    tiling : Tiling or None
        Tiles of the images.
    """

    DECISIONS = ("model", "training_scores", "offset", "map_threshold")
    """Properties that are fitted attributes of the detector, under these names with an underscore."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        of_scales: Sequence[TrainingFeatures],
        head: TrainedHead,
        settings: TrainingSettings,
        tiling: Tiling | None = None,
    ) -> None:
        self.extractor, self.of_scales, self.head, self.settings = extractor, of_scales, head, settings
        self.features, self.tiling = of_scales[0], tiling

    @cached_property
    def _scorer(self) -> tuple[PatchScorer, TrainingPatchScores | None]:
        n_epochs = self.head.n_epochs
        smaller = [
            (of_scale, train_head(of_scale, self.settings, "smaller scale", stop_after=n_epochs))
            for of_scale in self.of_scales[1:]
        ]
        return scorer_and_training_scores(self.features, self.head, self.settings, smaller)

    @cached_property
    def model(self) -> PBASModel:
        """The network that prediction evaluates."""
        scorer, _ = self._scorer
        tiling = copy.deepcopy(self.tiling)  # that of reading stays on the CPU
        model = PBASModel(self.extractor, scorer, self.settings.smoothing_sigma, tiling, self._whole_images)
        return model.to(self.features.device)

    @property
    def _whole_images(self) -> WholeImages:
        unit = unit_of(self.training_scores, self.offset)
        return WholeImages.of(*descriptions_of(self.features), unit, self.features.store.ignored_share)

    @cached_property
    def training_scores(self) -> NDArray[np.float64]:
        """``score_samples`` of the training images; by the fused score as if they were new."""
        return training_scores(self.features, self._scorer[0])

    @cached_property
    def offset(self) -> float:
        """Threshold on ``score_samples``."""
        scorer, contamination = self._scorer[0], self.settings.contamination
        if contamination == "auto":
            offset = estimate_offset(self.features, scorer, self.settings, stop_after=self.head.n_epochs)
        else:
            offset = float(np.quantile(self.training_scores, float(contamination)))
        if not math.isfinite(offset):
            raise TrainingError(f"the threshold is {offset}, although the scores of the training images are finite")
        return offset

    @cached_property
    def map_threshold(self) -> float:
        """Threshold on anomaly maps: a share ``false_alarm_rate`` of unseen normal images has a pixel above it.

        Without exemplars, whose absence makes training images new, it is where a map is flat in an image whose score is
        the threshold: maps are smoothed, so those of normal images stay below.
        """
        model, (_, patch_scores) = self.model, self._scorer
        if patch_scores is None:
            return flat_peak(model, self.features.n_positions, self.offset)
        peaks = partial(map_peaks, model)
        level = -offset_of_ratios(peaks(patch_scores.as_new).numpy(), self.settings.false_alarm_rate)
        level *= patch_scores.bias(peaks, model.n_tiles)
        return level / (1 + level)


def map_peaks(model: PBASModel, patch_scores: Tensor) -> Tensor:
    """Return the largest value p of each image's anomaly map, as p / (1 - p), for (n * n_tiles, H_0, W_0)."""
    of_images = patch_scores.flatten(1).split(model.n_tiles)
    peaks = torch.stack([model.anomaly_maps(of_image).max() for of_image in of_images]).cpu().double()
    peaks = peaks.clamp(max=LARGEST_PEAK)
    return peaks / (1 - peaks)


def flat_peak(model: PBASModel, n_positions: int, offset: float) -> float:
    """Return the value of the anomaly map of an image all of whose patches have the score of the threshold."""
    device = model.renderer.rows.device
    flat = torch.full((model.n_tiles, n_positions), -offset, dtype=torch.float32, device=device)
    return float(model.anomaly_maps(flat)[0, 0, 0])


def unit_of(scores: NDArray[np.float64], offset: float) -> float:
    """Return the difference of score that an image unlike all ``n`` training images as a whole has added.

    ``scores`` (n,): of the training images, higher for more normal ones.
    """
    usual, largest = -scores.mean(), max(-scores.min(), -offset)
    return float(max(largest - usual, _SMALLEST_UNIT * abs(usual), np.finfo(np.float32).tiny))


def descriptions_of(features: TrainingFeatures) -> tuple[Tensor, Tensor]:
    """Return the descriptions (n, D) of images as a whole, and the numbers (n,) of the images."""
    batch_size = inference_batch(features.device)
    ignored = itertools.repeat(None) if features.ignored is None else features.ignored.split(batch_size)
    batches = zip(features.parts_in_order(batch_size), ignored, strict=False)
    described = torch.cat([describe(parts, of_batch) for (parts, _), of_batch in batches])
    numbers = features.image_numbers[:: features.n_tiles].to(described.device)
    return described.unflatten(0, (-1, features.n_tiles)).mean(1), numbers


def new_scorer(features: TrainingFeatures, head: TrainedHead, settings: TrainingSettings) -> PatchScorer:
    """Return the patch scorer of a head trained on ``features``."""
    return scorer_and_training_scores(features, head, settings)[0]


def scorer_and_training_scores(
    features: TrainingFeatures,
    head: TrainedHead,
    settings: TrainingSettings,
    smaller: Sequence[tuple[TrainingFeatures, TrainedHead]] = (),
) -> tuple[PatchScorer, TrainingPatchScores | None]:
    """Return the patch scorer of a head trained on ``features``, and of the heads of smaller scales.

    Behind it are the patch scores of the training images; None without exemplars.
    """
    aggregator = features.aggregator
    scorer: PatchScorer
    if head.discriminator is None or settings.patch_score == "distance":
        scorer = DistanceScorer(aggregator, head.projector, head.center, head.loss_curve["center"][-1])
    elif settings.patch_score == "discriminator":
        scorer = DiscriminatorScorer(aggregator, head.projector, head.discriminator)
    else:
        return _exemplar_scorer([(features, head), *smaller], settings)
    scorer.precision = scorer_precision(scorer, settings.precision, features.device)
    return scorer.to(features.device), None


def _exemplar_scorer(
    of_scales: Sequence[tuple[TrainingFeatures, TrainedHead]], settings: TrainingSettings
) -> tuple[ExemplarScorer, TrainingPatchScores]:
    device, n_tiles = of_scales[0][0].device, of_scales[0][0].n_tiles
    precision = discriminator_precision(settings.precision, device)
    scorers, scores_of_scales = [], []
    for features, head in of_scales:
        assert head.discriminator is not None
        scorer, scores = fused_scorer(
            features, head.projector, head.discriminator, precision, n_exemplars=settings.n_exemplars
        )
        scorers.append(scorer)
        scores_of_scales.append(scores)
    result: ExemplarScorer = scorers[0]
    patch_scores = scores_of_scales[0]
    if len(scorers) > 1:
        result = summed = SummedScorer(scorers).to(device)
        summed.precision = precision
        patch_scores = summed_scores(summed, [features for features, _ in of_scales], scores_of_scales)
    bias = patch_scores.bias(lambda scores: result.of_images(scores, n_tiles), n_tiles)
    result.bias = torch.tensor(bias, dtype=torch.float32, device=device)
    return result, patch_scores


def summed_scores(
    summed: SummedScorer, of_scales: Sequence[TrainingFeatures], scores_of_scales: Sequence[TrainingPatchScores]
) -> TrainingPatchScores:
    """Return the patch scores of the training images by the sum of all scales, and set its ``training_scores``."""
    n_tiles, held_out = of_scales[0].n_tiles, scores_of_scales[0].held_out
    ignored = [features.ignored for features in of_scales]
    of_those = [None if of_scale is None else of_scale[held_out] for of_scale in ignored]
    as_new = summed.standardize(
        [fill_ignored(scores.as_new, i) for scores, i in zip(scores_of_scales, ignored, strict=True)],
        n_tiles=n_tiles,
        ignored=ignored[0],
    )
    of_held_out = summed.mean(
        [fill_ignored(scores.of_held_out, i) for scores, i in zip(scores_of_scales, of_those, strict=True)]
    )
    of_held_out = fill_ignored(of_held_out, of_those[0], n_tiles)
    return TrainingPatchScores(as_new, held_out, of_held_out, scores_of_scales[0].discriminator_bias)


def scorer_precision(scorer: PatchScorer, precision: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic of a patch scorer.

    The fused score tolerates bfloat16. The discriminator alone uses it only on request, because bfloat16 changed
    an image AUROC by 0.0016.
    """
    if isinstance(scorer, ExemplarScorer):
        return discriminator_precision(precision, device)
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def training_scores(features: TrainingFeatures, scorer: PatchScorer) -> NDArray[np.float64]:
    """Return ``score_samples`` of the training images (n,), by the fused score as if they were new.

    Raises
    ------
    TrainingError
        A score is not finite.
    """
    if isinstance(scorer, ExemplarScorer):
        scores = -scorer.training_scores.cpu().double().numpy()
    else:
        scores = score_stored(features, scorer)
    if n_bad := np.count_nonzero(~np.isfinite(scores)):
        raise TrainingError(
            f"the scores of {n_bad} of {len(scores)} training images are not finite, although features and losses are "
            "finite: lower projector_lr and discriminator_lr"
        )
    return scores


def score_stored(features: TrainingFeatures, scorer: PatchScorer, *, as_new: bool = False) -> NDArray[np.float64]:
    """Return ``score_samples`` of images, computed from their stored features.

    ``as_new``: score training images as if the exemplars among their own patches did not exist.
    """
    batches = features.parts_in_order(inference_batch(features.device))
    of_patches = torch.cat([scorer(parts, index if as_new else None) for parts, index in batches])
    filled = fill_ignored(of_patches, features.ignored, features.n_tiles)
    of_images = scorer.image_scores(filled, features.store.grids[0]).unflatten(0, (-1, features.n_tiles)).amax(1)
    return -of_images.cpu().double().numpy()


def estimate_offset(
    features: TrainingFeatures, scorer: PatchScorer, settings: TrainingSettings, *, stop_after: int | None = None
) -> float:
    """Return the score that about a share ``false_alarm_rate`` of unseen normal images falls below.

    ``stop_after``: number of epochs after which to stop the training of a second head.
    """
    scores = training_scores(features, scorer)
    if isinstance(scorer, ExemplarScorer):
        return float(scorer.bias) * offset_of_ratios(-scores, settings.false_alarm_rate)
    halves = score_halves(features, settings, stop_after=stop_after)
    return auto_offset(scores, halves, rate=settings.false_alarm_rate)


def score_halves(
    features: TrainingFeatures, settings: TrainingSettings, *, stop_after: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Train a second head on one half of the images, and return its scores of that half and of the other half.

    It trains for as many epochs as a head on all images would, or ``stop_after``, and so for half the steps. Returns
    None if there are too few images.
    """
    if features.n_images < SMALLEST_SPLIT:
        return None
    halves = features.halves()
    verbose = settings.verbose if settings.verbose == 1 else 0  # report epochs of the detector itself only
    settings = replace(settings, max_epochs=n_epochs(settings, features.n_images), verbose=verbose)
    head = train_head(halves[0], settings, description="threshold", stop_after=stop_after)
    scorer = new_scorer(halves[0], head, settings)
    return score_stored(halves[0], scorer, as_new=True), score_stored(halves[1], scorer, as_new=True)
