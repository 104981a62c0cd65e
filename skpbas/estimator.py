"""The estimator: parameters, documentation and methods; the work is done elsewhere."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skpbas._compat import CallbackSupportMixin, with_callbacks
from skpbas._decisions.deciding import DecisionMixin
from skpbas._features.extraction import LevelMaps
from skpbas._features.reading import Reading
from skpbas._features.recognition import TrainingImages
from skpbas._features.sampling import TrainingFeatures, as_of_now
from skpbas._features.scoring import ScoredBatch, iter_scored, sample_scores
from skpbas._features.store import STORED_DTYPES
from skpbas._features.streaming import StreamingMixin
from skpbas._inputs.decoding import item_name
from skpbas._inputs.image_statistics import GoodStatistics, warn_of_small_range
from skpbas._inputs.images import check_images
from skpbas._inputs.parameters import CONSTRAINTS, draw_seed
from skpbas._inputs.targets import rows_to_learn
from skpbas._training.callbacks import FitTasks
from skpbas._training.completion import Completion
from skpbas._training.deferred import DeferrableAttribute, Deferred
from skpbas._training.loop import TrainedHead, train_head
from skpbas._training.outliers import warn_of_outliers, without_outliers
from skpbas._training.saving import SavingMixin
from skpbas._training.settings import TrainingSettings, n_epochs
from skpbas._training.snapshots import SnapshotMixin
from skpbas._training.threshold import warn_of_few_images
from skpbas._training.updating import UpdatingMixin
from skpbas.core.backbones import FeatureExtractor
from skpbas.core.devices import callers_modes_left, resolve_device
from skpbas.core.model import PBASModel
from skpbas.core.networks import Discriminator, Projector


class PBASDetector(
    CallbackSupportMixin,  # type: ignore[misc]
    SavingMixin,
    UpdatingMixin,
    DecisionMixin,
    StreamingMixin,
    SnapshotMixin,
    OutlierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Find defective images, and where they are defective, after learning from normal images only.

    PBAS, Progressive Boundary guided Anomaly Synthesis [1]_: a frozen ImageNet network computes a feature of every
    patch, and a trained projector pulls the features of normal images toward a set of centers. Synthetic anomalies are
    made by pushing features away from their centers, and a small discriminator learns to tell the two apart.

    Parameters
    ----------
    Features
        The frozen network and what is taken from it.
    backbone : str or nn.Module, default="wide_resnet50_2"
        torchvision's "resnet18", "resnet50", "resnet101" or "wide_resnet50_2"; "embedded", the small network of the
        package; "timm:NAME", one of timm; or any module with the submodules named by ``layers`` that takes (B, 3, H, W)
        images, normalized by ImageNet's mean and standard deviation. See "Which backbone" in the user guide.
    weights : "imagenet", path or None, default="imagenet"
        "imagenet": torchvision's IMAGENET1K_V1 or timm's pretrained ones, downloaded once; a path: a state dict that
        covers the layers in use; None: random, for tests. Ignored if ``backbone`` is "embedded" or a module.
    layers : sequence of str, default=("layer2", "layer3")
        Levels, shallow first. Where timm's have other names: stages of stride 8 and 16, or two blocks of a transformer.
    patch_size : int, default=3
        Odd side p of the neighborhood that a patch feature averages over, in positions of its level.
    feature_dim : int or "auto", default="auto"
        Dimension d of a patch feature; "auto": the sum of the levels' channels.

    Input
        How images are brought to the network.
    image_size : int or (int, int), default=256
        Side, or height and width, of the network's input in pixels. Cost and memory grow with its area.
    resize : {"aspect", "stretch", "crop"}, default="aspect"
        "aspect": a single ``image_size`` s stands for about s x s pixels in the median aspect ratio of the training
        images (sides are multiples of 16, at most 4 : 1), and each image is resized to that; "stretch": to s x s;
        "crop": its shorter side is resized to s, and the center is cut out (as in the paper). They are the same for
        square images.
    tile : int or None, default=None
        For small defects in large images: side, in pixels of the images, of overlapping square tiles that are inspected
        one by one at ``image_size``. ``tile=256, image_size=256`` inspects every pixel. Time grows with the number of
        tiles. None: an image is inspected as a whole.
    scales : sequence of float, default=(1.0,)
        Multiples of ``image_size``, 1 and smaller ones, at which an image is inspected; the scores are summed. Each has
        its own networks and exemplars. Needs ``patch_score="fused"``.

    Method
        Centers, synthesis and the two networks that are trained.
    center_init : {"alignment", "mean", "ema", "kmeans"}, default="alignment"
        How the center set is found (Table VI of the paper).
    center_momentum : float, default=0.1
        Smoothing factor of "alignment" and "ema", in (0, 1].
    synthesis : {"ray", "gaussian"} or None, default="ray"
        "ray": along the ray from center to feature (Eq. 7); "gaussian": noise; None: no synthesis and no discriminator,
        an image is scored by the distances of its patches to their nearest centers (ABL alone).
    alpha : float, default=0.3
        Anomaly degree: how far beyond a feature its anomaly lies, in mean distances to the center.
    noise_std : float, default=0.015
        Standard deviation of the noise of "gaussian".
    projector_init : {"identity", "orthogonal", "xavier"}, default="identity"
        Initial projector: the identity, a random rotation, or Xavier's normal distribution (the paper's).
    n_heads : int, default=2
        Discriminators that are trained side by side; the mean of their logits depends less on the seed than the logit
        of a single one as wide as both. 1: the paper's.
    hidden_dim : int, default=256
        Hidden width of each discriminator.

    Training
        Optimization of projector and discriminator.
    max_epochs : int or "auto", default="auto"
        Passes over the training images; "auto": 24, or as many as make 600 optimization steps.
    batch_size : int, default=8
        Images per step.
    patches_per_step : int or None, default=1024
        Patches drawn at random from a batch per step; None: all (as in the paper).
    schedule : {"cosine", "constant"}, default="cosine"
        Course of the learning rates.
    projector_lr, discriminator_lr : float, default=1e-3, 5e-4
        Largest learning rates of Adam.
    projector_decay, discriminator_decay : float, default=1e-5, 1e-2
        Weight penalties lambda1 (L2) and lambda2 (decoupled) of Eq. 10.

    Scoring
        From the trained networks to scores, maps and labels.
    patch_score : {"fused", "discriminator", "distance"}, default="fused"
        "discriminator": D alone, as in the paper; "distance": the distance of a feature to its nearest center; "fused":
        the distance to the nearest exemplar of the training features, in units of its mean over the training images,
        times one plus the temperature-scaled discriminator probability (see "Method" in the user guide). Without
        synthesis: "distance".
    n_exemplars : int, default=4096
        Exemplars of "fused"; at most a quarter of the training patches.
    smoothing_sigma : float, default=4.0
        Standard deviation of the Gaussian smoothing of the anomaly map, in pixels of the network's input; 0: none.
    contamination : "auto" or float in (0, 0.5], default="auto"
        Sets ``offset_``. "auto": about a share ``false_alarm_rate`` of unseen normal images is flagged, as estimated
        from the training images, each scored as if it were new; without "fused", a second training on one half of the
        images shows how the other half scores. A float: that share of the training images is flagged; a similar share
        of unseen ones with "fused" (see "Threshold" in the user guide), more otherwise.
    exclude_outliers : bool, default=True
        Leave out training images that look defective beside the others, and warn of them by name; False: trust all.
    false_alarm_rate : float in (0, 0.5], default=0.01
        Share of unseen normal images that ``offset_`` ("auto") and ``map_threshold_`` aim to flag. A larger one misses
        fewer defects.

    Runtime
        Where and how it computes.
    device : "auto", str or torch.device, default="auto"
        "auto": cuda, mps or cpu, the first available.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        "auto": float32, but the discriminator computes in bfloat16, in training and in the fused score, on
        hardware that is faster in it; training features are stored in float16. "float32": everything in float32.
        "bfloat16": backbone, discriminator and stored features in bfloat16.
    random_state : int, RandomState or None, default=None
        An int gives the same detector on the same machine with the same number of threads. The global random streams of
        numpy and torch are neither read nor changed.
    memory : str, Path, joblib.Memory or None, default=None
        Folder, or joblib.Memory with one, that keeps the feature maps of every image seen in ``fit`` and in prediction
        (only in ``fit`` where the detector comes from a pickle), by the content of image and network, and exemplars.
        Folds and candidates of a search, and later fits, decode no image twice and run the backbone only once per
        image; processes may share it, and :func:`skpbas.trim_memory` bounds it. Feature maps are rounded to float16
        first, which may select other exemplars: scores differ a little from those without.
    n_jobs : int or None, default=None
        Threads that decode images ahead of the network; None: 1, -1: one per core.
    verbose : int, default=0
        1: progress bars; 2: a line per epoch.

    Attributes
    ----------
    model_ : PBASModel
        All that prediction computes, as one network on ``device_``: normalized images to image scores and anomaly maps.
    feature_extractor_ : FeatureExtractor
        Frozen backbone and aggregation, on ``device_``; maps (B, 3, H, W) images to (B, P, d) patch features.
    center_ : Tensor of shape (P, d)
        The center set, on ``device_``; this and the next two at scale 1.
    projector_ : Projector
        phi, on ``device_``.
    discriminator_ : Discriminator or None
        D, on ``device_``; None without synthesis.
    offset_ : float
        Threshold on ``score_samples``: ``decision_function = score_samples - offset_``.
    map_threshold_ : float
        Threshold on anomaly maps: about a share ``false_alarm_rate`` of unseen normal images has a pixel above it.
    training_scores_ : ndarray of shape (n,), float64
        ``score_samples`` of the ``n_samples_fit_`` images of ``fit`` and, behind them, ``partial_fit``; with "fused" as
        if they were new.
    training_outliers_ : ndarray of int
        Indices into the last X, of ``fit`` or ``partial_fit``, of the images that ``exclude_outliers`` left out.
    n_iter_ : int
        Epochs run: fewer than ``max_epochs`` if a callback ended the training.
    loss_curve_ : dict of str to list of float
        Means per epoch of "loss" and of its terms "center", "normal" and "anomaly" (the last two summed over the
        heads).
    device_ : torch.device
        Where the detector computes.
    n_samples_fit_ : int
        Images that training used, and those that ``partial_fit`` added.
    good_statistics_ : GoodStatistics
        What they were like: color, bits in use, size, brightness, contrast. Prediction warns of images that differ.
    map_shape_ : (int, int)
        Height and width of the anomaly maps at model size.

    Notes
    -----
    X, in every method, is an array (n, H, W, 3) or (n, H, W), channels last, or a sequence of paths, PIL images or
    arrays, whose sizes may differ. Pixels are uint8, uint16 (divided by 65,535) or floats in [0, 1].

    ``fit`` runs the backbone once over the images and stores features: at 256 pixels and in float16 0.5 MiB per image
    for ResNet18 and 1.9 MiB for WideResNet50-2; up to 4 GiB in memory, more in a temporary file. Prediction holds a few
    images at a time on a CPU, and 32 on a GPU.

    With "fused", a training image is recognized by its pixels (of the type they had in ``fit``) and scored as if it
    were new: the exemplars among its own patches do not count. An edited copy is not recognized: measure on images that
    were not in ``fit``.

    ``set_callbacks`` (scikit-learn 1.9 or newer) registers callbacks that see every epoch and may end the training: see
    "Callbacks" in the user guide.

    References
    ----------
    .. [1] Chen, Luo, Gao, Lv, Zhang: "Progressive Boundary Guided Anomaly Synthesis for Industrial Anomaly
       Detection", IEEE TCSVT 35(2), 2025, doi:10.1109/TCSVT.2024.3479887.

    Examples
    --------
    >>> from skpbas import PBASDetector
    >>> from skpbas.datasets import make_inspection_images
    >>> normal = make_inspection_images(n_normal=8, n_anomalous=0, size=64, random_state=0).images
    >>> detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0)
    >>> detector.fit(normal).predict(normal).shape
    (8,)
    >>> detector.anomaly_map(normal).shape
    (8, 64, 64)
    """

    model_: DeferrableAttribute[PBASModel] = DeferrableAttribute()
    feature_extractor_: FeatureExtractor
    center_: Tensor
    projector_: Projector
    discriminator_: Discriminator | None
    offset_: DeferrableAttribute[float] = DeferrableAttribute()
    map_threshold_: DeferrableAttribute[float] = DeferrableAttribute()
    training_scores_: DeferrableAttribute[NDArray[np.float64]] = DeferrableAttribute()
    training_outliers_: NDArray[np.intp]
    n_iter_: int
    loss_curve_: dict[str, list[float]]
    device_: torch.device
    n_samples_fit_: int
    map_shape_: tuple[int, int]
    good_statistics_: GoodStatistics
    _reading: Reading

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = CONSTRAINTS

    def __init__(
        self,
        backbone: str | nn.Module = "wide_resnet50_2",
        *,
        weights: str | Path | None = "imagenet",
        layers: Sequence[str] = ("layer2", "layer3"),
        patch_size: int = 3,
        feature_dim: int | str = "auto",
        image_size: int | tuple[int, int] = 256,
        resize: str = "aspect",
        tile: int | None = None,
        scales: Sequence[float] = (1.0,),
        center_init: str = "alignment",
        center_momentum: float = 0.1,
        synthesis: str | None = "ray",
        alpha: float = 0.3,
        noise_std: float = 0.015,
        projector_init: str = "identity",
        n_heads: int = 2,
        hidden_dim: int = 256,
        max_epochs: int | str = "auto",
        batch_size: int = 8,
        patches_per_step: int | None = 1024,
        schedule: str = "cosine",
        projector_lr: float = 1e-3,
        discriminator_lr: float = 5e-4,
        projector_decay: float = 1e-5,
        discriminator_decay: float = 1e-2,
        patch_score: str = "fused",
        n_exemplars: int = 4096,
        smoothing_sigma: float = 4.0,
        contamination: str | float = "auto",
        exclude_outliers: bool = True,
        false_alarm_rate: float = 0.01,
        device: str | torch.device = "auto",
        precision: str = "auto",
        random_state: Any = None,
        memory: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.patch_size = patch_size
        self.feature_dim = feature_dim
        self.image_size = image_size
        self.resize = resize
        self.tile = tile
        self.scales = scales
        self.center_init = center_init
        self.center_momentum = center_momentum
        self.synthesis = synthesis
        self.alpha = alpha
        self.noise_std = noise_std
        self.projector_init = projector_init
        self.n_heads = n_heads
        self.hidden_dim = hidden_dim
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.patches_per_step = patches_per_step
        self.schedule = schedule
        self.projector_lr = projector_lr
        self.discriminator_lr = discriminator_lr
        self.projector_decay = projector_decay
        self.discriminator_decay = discriminator_decay
        self.patch_score = patch_score
        self.n_exemplars = n_exemplars
        self.smoothing_sigma = smoothing_sigma
        self.contamination = contamination
        self.exclude_outliers = exclude_outliers
        self.false_alarm_rate = false_alarm_rate
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.memory = memory
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what normal images look like.

        Parameters
        ----------
        X : array or sequence of images
            At least two normal ones; see the notes of the class.
        y : None, labels or masks
            Which images are normal: labels (n,), +1 normal and -1 anomalous; masks (n, H, W); or a sequence of masks,
            paths of masks and, for no mask, None, NaN or "": an image with a defective pixel is anomalous (see
            :func:`skpbas.masks.read_mask`). Anomalous images are left out. None: all are normal.

        Returns
        -------
        PBASDetector
            The fitted detector itself.

        Raises
        ------
        InvalidImageError
            An image that cannot be used, named by index and file; fewer than two normal ones.
        InvalidTargetError
            y does not fit X, or is neither labels nor masks (0 and 1, booleans, words): the message has the conversion.
        WeightsError, WeightsUnavailableError
            No usable weights; the message says what to do.
        TrainingError
            The loss became NaN or infinite.
        StorageError
            More features than fit into memory, and a disk without room for them.
        """
        self._validate_params()
        self._begin_fit()
        items = check_images(X)
        rows = rows_to_learn(y, len(items), fewest=2, method="fit")
        with callers_modes_left(grad=True):
            return self._fit(items, rows, X, y)

    @with_callbacks  # type: ignore[untyped-decorator]
    def _fit(self, items: Any, rows: NDArray[np.intp], X: Any, y: Any) -> Self:
        device = resolve_device(self.device)
        generator = torch.Generator("cpu").manual_seed(draw_seed(self.random_state))
        settings = self._training_settings()
        settings = dataclasses.replace(settings, max_epochs=n_epochs(settings, len(rows)))
        tasks = FitTasks(self, X, y, int(settings.max_epochs))
        settings = dataclasses.replace(settings, verbose=0 if tasks.drawn_by_sklearn else self.verbose)
        with tasks.task("features"):
            reading, items = Reading.planned(self, items, rows)
            extractor = reading.new_extractor(self, generator).to(device)
            level_maps = self._level_maps(items, extractor, reading)
            store = level_maps.store(rows.tolist(), STORED_DTYPES[self.precision], show_progress=bool(settings.verbose))
        warn_of_few_images(store.fingerprints, stacklevel=4)
        memory = None if level_maps.cache is None else level_maps.cache.folder
        options = device, generator, memory, level_maps.n_tiles
        of_scales, found = without_outliers(TrainingFeatures.of_scales(store, extractor, *options), settings)
        outliers = rows[list(found)]
        warn_of_outliers(found, [item_name(items[i], i) for i in outliers], len(rows), stacklevel=4)
        good = GoodStatistics.of([details for i, details in enumerate(store.details) if i not in found])
        warn_of_small_range(good, stacklevel=4)
        known, share = TrainingImages(store.fingerprints), store.ignored_share
        reading = dataclasses.replace(reading, training=known, good=good, ignored_share=share)

        def detector_of(head: TrainedHead) -> PBASDetector:
            """Return the detector of an unfinished training; its model and threshold are computed if they are used."""
            completion = Completion(extractor, as_of_now(of_scales), head, settings, reading.tiling)
            decisions = {name: Deferred(partial(getattr, completion, name)) for name in Completion.DECISIONS}
            return copy.copy(self)._set_fitted(completion, reading, outliers, decisions)

        head = train_head(of_scales[0], settings, listener=tasks.epochs(detector_of))
        completion = Completion(extractor, of_scales, head, settings, reading.tiling)
        with tasks.task("threshold"):
            decisions = {name: getattr(completion, name) for name in Completion.DECISIONS}
        self._set_fitted(completion, reading, outliers, decisions)
        tasks.end()
        return self

    def _set_fitted(
        self, of: Completion, reading: Reading, outliers: NDArray[np.intp], decisions: dict[str, Any]
    ) -> Self:
        head, fitted = of.head, self._draft()
        fitted._opened = False
        fitted.feature_extractor_, fitted.map_shape_ = of.extractor, reading.view_shape
        fitted.center_, fitted.projector_, fitted.discriminator_ = head.center, head.projector, head.discriminator
        fitted.loss_curve_, fitted.n_iter_ = head.loss_curve, head.n_epochs
        fitted.n_samples_fit_, fitted.training_outliers_ = of.features.n_images, outliers
        fitted.device_ = of.features.device
        assert reading.good is not None
        fitted._reading, fitted.good_statistics_ = reading, reading.good
        for name, value in decisions.items():
            setattr(fitted, f"{name}_", value)
        return self._adopt(fitted)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Score images; higher is more normal.

        Minus the largest score of an image's patches (Eq. 11), with "fused" minus the mean of the largest hundredth,
        smoothed; lower if the image is unlike all training images as a whole (see "Decisions" in the user guide). There
        is no limit where D(phi(t)) rounds to 1: "discriminator" takes its logit, and distances keep growing.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), float64
        """
        check_is_fitted(self)
        return sample_scores(self._snapshot()._iter_scored(X))

    def anomaly_map(self, X: Any, size: str = "model") -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return anomaly maps: how anomalous each pixel is.

        The patch scores, upsampled to the size of the network's input and smoothed (Eq. 12). With
        ``patch_score="discriminator"`` these are D(phi(t)). A distance s is shown as s / (s + m), where m is its mean
        in the last epoch; a fused score such that 0.5 is the mean image score of the training images.

        Parameters
        ----------
        X : array or sequence of images
        size : {"model", "input"}, default="model"
            "model": ``map_shape_``; "input": each map at the size of its image. What a crop did not see is NaN.

        Returns
        -------
        ndarray of shape (n, H, W), float32 in [0, 1]
            Higher is more anomalous. A list of (H_i, W_i) arrays if the images' sizes differ.
        """
        anomaly_maps = list(self.iter_anomaly_maps(X, size=size))
        if len({anomaly_map.shape for anomaly_map in anomaly_maps}) > 1:
            return anomaly_maps
        return np.stack(anomaly_maps)

    def _iter_scored(self, X: Any) -> Iterator[ScoredBatch]:
        items = check_images(X)  # at the call, not at the first result
        return iter_scored(self.model_, self._level_maps(items, self.model_.extractor, self._reading))

    def _level_maps(
        self, items: Any, extractor: FeatureExtractor, reading: Reading | None = None, name: str = "X"
    ) -> LevelMaps:
        reading = reading or Reading.of(self)
        writes = reading.training is None or not self._opened  # in fit, and where the detector was fitted
        return reading.level_maps(items, extractor, self, name=name, writes=writes)

    def _training_settings(self) -> TrainingSettings:
        return TrainingSettings.of(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags
