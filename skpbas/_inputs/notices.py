"""What is noted about images while they are read, and warned of once for all of a call; needs no torch."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sized
from dataclasses import dataclass

from skpbas._inputs.comparison import Comparison, how_many
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.image_statistics import GoodStatistics, ImageStatistics

_CROP_WARNING_SHARE = 0.05
_ASPECT_WARNING = math.log(1.5) + 1e-9


@dataclass(frozen=True)
class ViewDetails:
    """What is known of the model's view of an image besides its pixels.

    Attributes
    ----------
    geometry : Geometry
    transparent, more_frames : bool
        What decoding left out: see :class:`~skpbas._inputs.decoding.Decoded`.
    statistics : ImageStatistics or None
        What the image is like apart from its content.
    """

    geometry: Geometry
    transparent: bool = False
    more_frames: bool = False
    statistics: ImageStatistics | None = None


class Notices:
    """What views of images leave out, and how the images differ from those of ``fit``.

    Parameters
    ----------
    aspect : float or None
        Height / width of the training images: a warning names images that differ from it much.
    good : GoodStatistics or None
        What the training images were like: warnings name images that differ.
    """

    def __init__(self, aspect: float | None, good: GoodStatistics | None) -> None:
        self.aspect = aspect
        self._comparison = None if good is None else Comparison(good)
        self._distorted: dict[int, str] = {}
        self._cropped: dict[int, float] = {}
        self._transparent: dict[int, str] = {}
        self._more_frames: dict[int, str] = {}
        self._warned: set[str] = set()
        self._n_noted, self._lock = 0, threading.Lock()

    def note(self, index: int, name: str, details: ViewDetails) -> None:
        """Record what the view of an image leaves out, and how the image differs from those of ``fit``."""
        with self._lock:
            self._n_noted += 1
        if details.geometry.unseen > _CROP_WARNING_SHARE:
            self._cropped[index] = details.geometry.unseen
        height, width = details.geometry.input_shape
        if self.aspect is not None and abs(math.log(height / width / self.aspect)) > _ASPECT_WARNING:
            self._distorted[index] = f"{name}, {height} x {width}"
        if details.transparent:
            self._transparent[index] = name
        if details.more_frames:
            self._more_frames[index] = name
        if self._comparison is not None:
            self._comparison.note(index, name, details)

    def warn(self, n_images: int | None, stacklevel: int = 2) -> None:
        """Warn once of each thing that was left out of, or is different in, the images noted so far.

        ``n_images``: of the call; None: unknown. If others may follow, how many are concerned is not known.
        """
        n_images = n_images if self._n_noted == n_images else None
        cropped, self._cropped = self._cropped, {}  # a stream may be endless, so nothing is kept
        transparent, self._transparent = self._transparent, {}
        more_frames, self._more_frames = self._more_frames, {}
        distorted, self._distorted = self._distorted, {}
        texts = {}

        def some(found: Sized) -> str:
            return how_many(len(found), n_images)

        if cropped:
            texts["crop"] = (
                f'resize="crop" discards up to {max(cropped.values()):.0%} of the area of {some(cropped)}; '
                'resize="stretch" uses whole images'
            )
        if distorted:
            are, their = ("is", "its") if n_images is not None and len(distorted) == 1 else ("are", "their")
            texts["aspect"] = (
                f"{some(distorted)} {are} distorted, because {their} aspect ratio differs by more than a factor "
                f"1.5 from {self.aspect:.3g} : 1 (height : width), that of what the network sees; the first is "
                f"{distorted[min(distorted)]}. Pass images of one aspect ratio, at most 4 : 1, such as crops"
            )
        if transparent:
            texts["alpha"] = (
                f"transparent pixels are blended with white in {some(transparent)}, first in "
                f"{transparent[min(transparent)]}; pass images without an alpha channel if hidden colors matter"
            )
        if more_frames:
            texts["frames"] = (
                f"only the first of several pages or frames is used in {some(more_frames)}, first in "
                f"{more_frames[min(more_frames)]}; pass each as an image of its own if the others matter"
            )
        if self._comparison is not None:
            texts |= self._comparison.texts(n_images)
        for kind, text in texts.items():
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(text, UserWarning, stacklevel=stacklevel)
