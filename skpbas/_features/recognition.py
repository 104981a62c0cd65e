"""Recognition of training images in prediction, so that they can be scored as if they were new."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable

import numpy as np
from torch import Tensor

UNKNOWN = -1
"""Index of an image that is not a training image."""

_CHECKSUM_LENGTH = 8


def fingerprint(view: Tensor) -> str:
    """Return a digest of the pixels (3, H, W) that the network sees of an image, behind their checksum."""
    digest = hashlib.blake2b(f"{view.dtype} {tuple(view.shape)}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(view.numpy()).data)
    return _checksum(view) + digest.hexdigest()


def _checksum(view: Tensor) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(view[0].numpy()).data):0{_CHECKSUM_LENGTH}x}"


class TrainingImages:
    """The training images by their fingerprints.

    Parameters
    ----------
    fingerprints : iterable of str
        In the order of the training images.
    """

    def __init__(self, fingerprints: Iterable[str]) -> None:
        self._indices: dict[str, int] = {}
        for index, of_image in enumerate(fingerprints):
            self._indices.setdefault(of_image, index)
        self._checksums = {of_image[:_CHECKSUM_LENGTH] for of_image in self._indices}

    def fingerprints(self) -> list[str]:
        """Return fingerprints that make the same training images; those of equal images may be exchanged."""
        of_index = {index: of_image for of_image, index in self._indices.items()}
        return [of_index.get(index, of_index[0]) for index in range(max(of_index) + 1)] if of_index else []

    def first_equal(self, fingerprints: Iterable[str]) -> list[int]:
        """Return the index of the first of equal images for each of these, which are training images."""
        return [self._indices[of_image] for of_image in fingerprints]

    def index_of_view(self, view: Tensor) -> int:
        """Return the index of the training image with this view (3, H, W), or UNKNOWN."""
        # the checksum alone takes a tenth of the time
        return self.index_of(fingerprint(view)) if _checksum(view) in self._checksums else UNKNOWN

    def index_of(self, of_image: str) -> int:
        """Return the index of the training image with this fingerprint, or UNKNOWN."""
        return self._indices.get(of_image, UNKNOWN)
