"""How ``fit`` reads images, which prediction repeats whatever the parameters are by then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skpbas._features.cache import MapCache
from skpbas._features.extraction import LevelMaps
from skpbas._features.recognition import TrainingImages
from skpbas._features.store import STORED_DTYPES
from skpbas._inputs.images import ImageSequence
from skpbas._inputs.parameters import height_and_width, n_threads
from skpbas._inputs.shapes import input_shape, median_aspect, peek_shapes, warn_of_reduction
from skpbas.core.backbones import FeatureExtractor


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes
    ----------
    image_size : (int, int)
        Height and width of the network's input.
    resize, precision : str
        The parameters.
    aspect : float or None
        With ``resize="aspect"``: median height / width of the training images.
    training : TrainingImages or None
        None in ``fit`` itself.
    """

    image_size: tuple[int, int]
    resize: str
    precision: str
    aspect: float | None = None
    training: TrainingImages | None = None

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
        image_size, resize = detector.image_size, detector.resize
        shapes, items = peek_shapes(items, rows)
        shape = input_shape(image_size, resize, shapes)
        warn_of_reduction(shapes, image_size, shape, resize)
        aspect = median_aspect(shapes) if resize == "aspect" and len(shapes) else None
        return cls(shape, resize, detector.precision, aspect), items

    def level_maps(
        self, items: Any, extractor: FeatureExtractor, detector: Any, *, name: str = "X", writes: bool = True
    ) -> LevelMaps:
        """Return the feature maps of images; ``memory`` and ``n_jobs`` are the detector's."""
        images = ImageSequence(
            items,
            image_size=extractor.image_size,
            resize=self.resize,
            smallest=extractor.stride,
            name=name,
            aspect=self.aspect,
        )
        cache = MapCache.of(detector.memory, extractor, self.resize, STORED_DTYPES[self.precision], writes=writes)
        return LevelMaps(images, extractor, n_threads(detector.n_jobs), cache, self.training)
