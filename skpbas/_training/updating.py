"""Further good images for a fitted detector: what ``partial_fit`` changes, in time that grows with the new ones only.

The networks stay. Exemplars are selected again, among those that are there and the patches of the new images. The
patches of earlier images are gone, so their scores as if they were new follow from how much closer the exemplars of
other images have come to their own exemplars.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skpbas._features.reading import NetworkPlan
from skpbas._features.recognition import TrainingImages
from skpbas._features.sampling import TrainingFeatures
from skpbas._features.store import STORED_DTYPES
from skpbas._inputs.decoding import item_name
from skpbas._inputs.image_statistics import GoodStatistics, warn_of_small_range
from skpbas._inputs.images import check_images
from skpbas._inputs.targets import rows_to_learn
from skpbas._training.completion import (
    LARGEST_PEAK,
    descriptions_of,
    flat_peak,
    map_peaks,
    score_stored,
    summed_scores,
    unit_of,
)
from skpbas._training.exemplars import TrainingPatchScores, exemplars_of, with_held_out
from skpbas._training.outliers import warn_of_outliers, without_outliers
from skpbas._training.settings import TrainingSettings
from skpbas._training.threshold import auto_offset, offset_of_ratios, warn_of_few_images
from skpbas.core.coreset import Coreset
from skpbas.core.devices import callers_modes_left, inference_batch
from skpbas.core.model import PBASModel
from skpbas.core.patch_scores import ExemplarScorer, FusedScorer, PatchScorer, SummedScorer, fill_ignored
from skpbas.core.whole_images import WholeImages
from skpbas.errors import TrainingError

Floats = NDArray[np.float64]

_EPS = float(torch.finfo(torch.float32).eps)


class UpdatingMixin:
    """Adds further good images to a fitted detector."""

    _snapshot: Callable[[], Any]
    _draft: Callable[[], Any]
    _adopt: Callable[[Any], Any]
    _begin_fit: Callable[[], None]
    _validate_params: Callable[[], None]
    fit: Callable[..., Self]

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn further normal images, without training again.

        For another batch, another shade, or false alarms that turned out to be good. Exemplars, scales and thresholds
        follow; the networks and their centers stay, and so does how images are read. The time depends on the new
        images, not on how many were there before. Before ``fit``, it is ``fit``. See "Further good images" in the user
        guide for how close it comes to ``fit`` on all images.

        Images that were given before count once more. With ``exclude_outliers``, new images that look defective beside
        the other new ones and those before are left out, if eight or more different ones are given; fewer are trusted.
        ``contamination`` and ``false_alarm_rate`` are used as they are now. If an error occurs, the detector stays as
        it was.

        Parameters
        ----------
        X : array or sequence of images
            One or more, as for ``fit``. A warning names those that another camera or light seems to have made.
        y : None, labels or masks
            As for ``fit``: anomalous images are left out.

        Returns
        -------
        PBASDetector
            The detector itself. Its ``training_scores_`` and ``n_samples_fit_`` count all images so far, and
            ``training_outliers_`` are indices into this X.

        Raises
        ------
        InvalidImageError
            An image that cannot be used, named by index and file; no normal one.
        InvalidTargetError
            y does not fit X, or is neither labels nor masks.
        TrainingError
            A score is not finite.
        StorageError
            More features than fit into memory, and a disk without room for them.

        Examples
        --------
        >>> from skpbas import PBASDetector
        >>> from skpbas.datasets import make_inspection_images
        >>> good = make_inspection_images(n_normal=20, n_anomalous=0, size=64, random_state=0).images
        >>> detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0).fit(good[:12])
        >>> detector.partial_fit(good[12:]).n_samples_fit_
        20
        """
        if not hasattr(self, "feature_extractor_"):
            return self.fit(X, y)
        self._validate_params()
        self._begin_fit()
        items = check_images(X)
        rows = rows_to_learn(y, len(items), fewest=1, method="partial_fit")
        with callers_modes_left(grad=False):
            update, draft = Update.read(self._snapshot(), items, rows), self._draft()
            for name, value in update.attributes().items():
                setattr(draft, name, value)
        return self._adopt(draft)


class Update:
    """What a fitted detector becomes by further images.

    Parameters
    ----------
    before : PBASDetector
        The fitted detector, which is not changed.
    of_scales : sequence of TrainingFeatures
        Features of the new images, at each scale of the detector.
    settings : TrainingSettings
    """

    def __init__(self, before: Any, of_scales: Sequence[TrainingFeatures], settings: TrainingSettings) -> None:
        self.before, self.of_scales, self.settings = before, of_scales, settings
        self.features, self.n_before = of_scales[0], int(before.n_samples_fit_)
        self.scores_before: Floats = before.training_scores_
        self.changed: dict[str, Any] = {}

    @classmethod
    def read(cls, before: Any, items: Any, rows: NDArray[np.intp]) -> Self:
        """Read the new images ``items[rows]``; those that look defective are left out, with a warning."""
        extractor, reading, model = before.feature_extractor_, before._reading, before.model_
        settings = dataclasses.replace(TrainingSettings.of(before), precision=reading.precision)
        level_maps = dataclasses.replace(reading, training=None).level_maps(items, extractor, before)
        store = level_maps.store(rows.tolist(), STORED_DTYPES[reading.precision], show_progress=bool(settings.verbose))
        store.earlier = reading.training.fingerprints()
        fingerprints = [*store.earlier, *store.fingerprints]
        warn_of_few_images(fingerprints, stacklevel=4)
        unused = torch.Generator("cpu").manual_seed(0)
        of_scales = TrainingFeatures.of_scales(store, extractor, before.device_, unused, None, level_maps.n_tiles)
        known = next((member.coreset for member in _members(model.patch_scorer)), None)
        of_scales, found = without_outliers(of_scales, settings, known)
        outliers = rows[list(found)]
        warn_of_outliers(found, [item_name(items[i], i) for i in outliers], len(rows), stacklevel=4)
        new = GoodStatistics.of([details for i, details in enumerate(store.details) if i not in found])
        good = before.good_statistics_.merged(new)
        warn_of_small_range(good, stacklevel=4)
        share = max(reading.ignored_share, store.ignored_share)
        training = TrainingImages(fingerprints)
        update = cls(before, of_scales, settings)
        update.changed = {
            "_reading": dataclasses.replace(reading, training=training, good=good, ignored_share=share),
            "good_statistics_": good,
            "training_outliers_": outliers,
            "n_samples_fit_": update.n_before + of_scales[0].n_images,
        }
        return update

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that change."""
        return {
            **self.changed,
            "model_": self.model,
            "training_scores_": self.training_scores,
            "offset_": self.offset,
            "map_threshold_": self.map_threshold,
        }

    @cached_property
    def _scorer(self) -> tuple[PatchScorer, TrainingPatchScores | None]:
        """The patch scorer, and the patch scores of the new images; None without exemplars."""
        before: PatchScorer = self.before.model_.patch_scorer
        if not isinstance(before, ExemplarScorer):
            return before, None
        members = _members(before)
        updated = [self._member(member, features) for member, features in zip(members, self.of_scales, strict=True)]
        scorer: ExemplarScorer = updated[0][0]
        patch_scores, factor = updated[0][1:]
        if isinstance(before, SummedScorer):
            scorer = summed = SummedScorer([member for member, _, _ in updated]).to(self.features.device)
            summed.precision = before.precision
            patch_scores = summed_scores(summed, self.of_scales, [scores for _, scores, _ in updated])
            factors = [
                factor * float(old.training_scores.mean() / member.training_scores.mean().clamp_min(_EPS))
                for old, (member, _, factor) in zip(members, updated, strict=True)
            ]
            factor = sum(factors) / len(factors)  # of a sum whose terms changed about as much
            scorer.training_scores = torch.cat([before.training_scores * factor, scorer.training_scores])
        scorer.bias = self._bias(before, scorer, patch_scores)
        return scorer, patch_scores

    def _member(
        self, before: FusedScorer, features: TrainingFeatures
    ) -> tuple[FusedScorer, TrainingPatchScores, float]:
        """Return the scorer of one scale, the new images' patch scores, and the factor of earlier images' scores."""
        n_exemplars, precision = self.settings.n_exemplars, before.precision
        found = exemplars_of(features, precision, n_exemplars, known=before.coreset)
        scorer = copy.deepcopy(before)
        scorer.coreset = found.coreset
        share = features.n_images / (self.n_before + features.n_images)
        scorer.mean_distance = (1 - share) * before.mean_distance + share * found.nearest.mean()
        batches = features.parts_in_order(inference_batch(features.device))
        logits = torch.cat([scorer.logits(parts) for parts, _ in batches])  # standardized as before, as D stays
        as_new = fill_ignored(scorer.fuse(logits, found.nearest), features.ignored, features.n_tiles)
        of_new = scorer.of_images(as_new, features.n_tiles)
        factor = _growth(before.coreset, found.coreset) * float(before.mean_distance / scorer.mean_distance)
        scorer.training_scores = torch.cat([before.training_scores * factor, of_new])
        return scorer, with_held_out(features, scorer, as_new, n_exemplars, known=before.coreset), factor

    def _bias(self, before: ExemplarScorer, scorer: ExemplarScorer, patch_scores: TrainingPatchScores) -> Tensor:
        """Return the mean bias of earlier and new images, on a logarithmic scale."""
        if not len(patch_scores.held_out):
            return before.bias
        n_tiles = self.features.n_tiles
        n_new = int((self.features.image_numbers >= self.features.n_earlier).sum()) // n_tiles
        new = patch_scores.bias(lambda scores: scorer.of_images(scores, n_tiles), n_tiles)
        logarithm = (self.n_before * math.log(float(before.bias)) + n_new * math.log(new)) / (self.n_before + n_new)
        return torch.tensor(math.exp(logarithm), dtype=torch.float32, device=before.bias.device)

    @cached_property
    def model(self) -> PBASModel:
        """The network that prediction evaluates."""
        before: PBASModel = self.before.model_
        plan = self.before._reading.plan or NetworkPlan.of(self.before)
        tiling = copy.deepcopy(before.tiling)
        model = PBASModel(before.extractor, self._scorer[0], plan.smoothing_sigma, tiling, self._whole_images)
        return model.to(self.features.device)

    @property
    def _whole_images(self) -> WholeImages:
        before, (new, numbers) = self.before.model_.whole_images, descriptions_of(self.features)
        return WholeImages.of(
            torch.cat([before.known + before.center, new]),
            torch.cat([before.image_index, numbers]),
            unit_of(self.training_scores, self.offset),
            max(float(before.ignored), self.features.store.ignored_share),
        )

    @cached_property
    def training_scores(self) -> Floats:
        """Scores of the earlier images and, behind them, of the new ones."""
        scorer = self._scorer[0]
        scores = (
            -scorer.training_scores.cpu().double().numpy()
            if isinstance(scorer, ExemplarScorer)
            else np.concatenate([self.scores_before, score_stored(self.features, scorer)])
        )
        if not np.isfinite(scores).all():
            raise TrainingError("the scores of some images are not finite, although their features are: fit again")
        return scores

    @cached_property
    def offset(self) -> float:
        """Threshold on ``score_samples``."""
        scorer, rate, contamination = self._scorer[0], self.settings.false_alarm_rate, self.settings.contamination
        if contamination != "auto":
            return float(np.quantile(self.training_scores, float(contamination)))
        if isinstance(scorer, ExemplarScorer):
            return float(scorer.bias) * offset_of_ratios(-self.training_scores, rate)
        # networks have not seen the new images, and score those that they have seen higher
        shift = max(auto_offset(self.scores_before, shift=0.0, rate=rate) - self.before.offset_, 0.0)
        seen = self.features.image_numbers[:: self.features.n_tiles].numpy() < self.features.n_earlier
        shifts = shift * np.concatenate([np.ones(self.n_before), seen])
        return auto_offset(self.training_scores - shifts, shift=0.0, rate=rate)

    @cached_property
    def map_threshold(self) -> float:
        """Threshold on anomaly maps; peaks of earlier images are to their scores as the former thresholds are."""
        model, (scorer, patch_scores) = self.model, self._scorer
        if patch_scores is None:
            return flat_peak(model, self.features.n_positions, self.offset)
        assert isinstance(scorer, ExemplarScorer)
        old, rate = self.before.model_.patch_scorer, self.settings.false_alarm_rate
        threshold = min(self.before.map_threshold_, LARGEST_PEAK)
        level = threshold / (1 - threshold) * -self.scores_before.mean()  # maps are in units of the mean score
        to_peaks = -level / (float(old.bias) * offset_of_ratios(-self.scores_before, rate))
        peaks = map_peaks(model, patch_scores.as_new).numpy()
        unit = max(-self.training_scores.mean(), _EPS)
        earlier = -self.training_scores[: self.n_before] * to_peaks / unit
        level = -float(scorer.bias) * offset_of_ratios(np.concatenate([earlier, peaks]), rate)
        return level / (1 + level)


def _growth(before: Coreset, now: Coreset) -> float:
    """Return about how much larger the distances of earlier images to the exemplars of others are now.

    The exemplars themselves can be measured. They were selected for being far from each other, so new ones come closer
    to them than to other patches: by twice as much, on a logarithmic scale, on bottles and generated products.
    """
    then, later = (float(c.distance(before.exemplars, before.image_index).mean()) for c in (before, now))
    return math.sqrt(later / then) if min(then, later) > 0 else 1.0


def _members(scorer: PatchScorer) -> list[FusedScorer]:
    """Return the fused scorers of the scales; none without exemplars."""
    members = list(scorer.members) if isinstance(scorer, SummedScorer) else [scorer]
    return [member for member in members if isinstance(member, FusedScorer)]
