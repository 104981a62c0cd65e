"""How ``fit`` reads images, which prediction repeats whatever the parameters are by then."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skpbas._features.cache import MapCache
from skpbas._features.extraction import LevelMaps
from skpbas._features.recognition import TrainingImages
from skpbas._features.store import STORED_DTYPES
from skpbas._inputs.ignoring import Ignored
from skpbas._inputs.image_statistics import GoodStatistics
from skpbas._inputs.images import ImageSequence
from skpbas._inputs.parameters import check_layers, check_scales, height_and_width, n_threads, odd
from skpbas._inputs.shapes import input_shape, median_aspect, peek_shapes, tiled_shape, warn_of_reduction
from skpbas.core.backbones import FeatureExtractor, build_backbone
from skpbas.core.tiling import Tiling


@dataclass(frozen=True)
class NetworkPlan:
    """The parameters that a fitted model was made with, and that its modules do not keep.

    Attributes
    ----------
    backbone : str
        Its name, or "module".
    weights : {"imagenet", "file", "random", "package", "given"}
        Where they come from: torchvision or timm, a state-dict file, a generator, this package, or the module itself.
    layers : tuple of str
    patch_size : int
    scales : tuple of float
        Largest first.
    smoothing_sigma : float
    """

    backbone: str
    weights: str
    layers: tuple[str, ...]
    patch_size: int
    scales: tuple[float, ...]
    smoothing_sigma: float

    @classmethod
    def of(cls, detector: Any) -> Self:
        """Return what the parameters of a detector say."""
        backbone, weights = detector.backbone, detector.weights
        if isinstance(backbone, nn.Module):
            backbone, source = "module", "given"
        elif backbone == "embedded":
            source = "package"
        else:
            source = "random" if weights is None else "imagenet" if str(weights) == "imagenet" else "file"
        return cls(
            str(backbone),
            source,
            tuple(map(str, check_layers(detector.layers))),
            odd(detector.patch_size),
            check_scales(detector.scales, detector.patch_score, detector.synthesis),
            float(detector.smoothing_sigma),
        )


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes
    ----------
    view_shape : (int, int)
        Height and width to which images are brought: those of the network's input or, with tiles, larger ones.
    resize, precision : str
        The parameters.
    aspect : float or None
        With ``resize="aspect"``: height / width of images that are not distorted, or that of most training images, if
        height and width are given.
    training : TrainingImages or None
        None in ``fit`` itself.
    tiling : Tiling or None
        Tiles that a view is cut into.
    ignored_share : float
        Largest share of a training image that was ignored.
    good : GoodStatistics or None
        What the training images were like; None in ``fit`` itself.
    plan : NetworkPlan or None
        What the network was made with; None where the images' shapes are not known.
    """

    view_shape: tuple[int, int]
    resize: str
    precision: str
    aspect: float | None = None
    training: TrainingImages | None = None
    tiling: Tiling | None = None
    ignored_share: float = 0.0
    good: GoodStatistics | None = None
    plan: NetworkPlan | None = None

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.view_shape if self.tiling is None else self.tiling.tile_shape

    @classmethod
    def of(cls, detector: Any) -> Self:
        """Return how a detector reads images whose shapes are not known."""
        return cls(height_and_width(detector.image_size), detector.resize, detector.precision)

    @classmethod
    def planned(cls, detector: Any, items: Any, rows: NDArray[np.intp]) -> tuple[Self, Any]:
        """Return how a detector reads the training images ``items[rows]``, and the items to be read instead.

        Warns
        -----
        UserWarning
            The default ``image_size`` leaves little of large images.
        """
        image_size, resize, tile = detector.image_size, detector.resize, detector.tile
        shapes, items = peek_shapes(items, rows, n_threads(detector.n_jobs))
        if tile is None:
            shape, tiling = input_shape(image_size, resize, shapes), None
            warn_of_reduction(shapes, image_size, shape, resize)
        else:
            shape = tiled_shape(image_size, tile, resize, shapes)
            tiling = Tiling(shape, int(image_size))
        aspect = None
        if resize == "aspect" and len(shapes):
            aspect = shape[0] / shape[1] if isinstance(image_size, Integral) else median_aspect(shapes)
        plan = NetworkPlan.of(detector)
        return cls(shape, resize, detector.precision, aspect, tiling=tiling, plan=plan), items

    def new_extractor(self, detector: Any, generator: torch.Generator) -> FeatureExtractor:
        """Return a new feature extractor with the parameters of a detector; random weights are from the generator."""
        layers = check_layers(detector.layers)
        return FeatureExtractor(
            build_backbone(detector.backbone, detector.weights, layers, generator, progress=bool(detector.verbose)),
            image_size=self.input_shape,
            patch_size=odd(detector.patch_size),
            feature_dim=detector.feature_dim,
            precision=torch.bfloat16 if detector.precision == "bfloat16" else torch.float32,
            scales=check_scales(detector.scales, detector.patch_score, detector.synthesis),
        )

    def level_maps(
        self, items: Any, extractor: FeatureExtractor, detector: Any, *, name: str = "X", writes: bool = True
    ) -> LevelMaps:
        """Return the feature maps of images; ``memory`` and ``n_jobs`` are the detector's."""
        images = ImageSequence(
            items,
            image_size=self.view_shape,
            resize=self.resize,
            smallest=extractor.stride,
            name=name,
            aspect=self.aspect,
            good=self.good,
        )
        cache = MapCache.of(
            detector.memory,
            extractor,
            self.resize,
            STORED_DTYPES[self.precision],
            writes=writes,
            view_shape=self.view_shape,
            n_tiles=1 if self.tiling is None else self.tiling.n_tiles,
        )
        fillable = 1.0 if self.training is None else self.ignored_share + Ignored.MORE
        return LevelMaps(images, extractor, n_threads(detector.n_jobs), cache, self.training, self.tiling, fillable)
