"""Images tile by tile."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas.runtime._providers import Run


class Tiles:
    """An image tile by tile: what :class:`~skpbas.core.tiling.Tiling` and ``WholeImages`` do, in numpy."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        tiles, whole = metadata["tiles"], metadata.get("whole_images")
        self.image_shape: tuple[int, int] = tuple(metadata["map_shape"])
        self.shape: tuple[int, int] = tuple(tiles["shape"])
        self.tops, self.lefts = tiles["tops"], tiles["lefts"]
        self.row_weights, self.column_weights = _unpacked(tiles["row_weights"]), _unpacked(tiles["column_weights"])
        self.whole = whole
        if whole is not None:
            self.center, self.known = _unpacked(whole["center"]), _unpacked(whole["known"])

    def scored(self, view: NDArray[Any], run: Run) -> tuple[float, NDArray[np.float32]]:
        """Return the image score, higher for more anomalous, and the anomaly map of a view (1, H, W, 3)."""
        blended = np.zeros(self.image_shape, np.float32)
        scores, descriptions = [], []
        height, width = self.shape
        for (i, top), (j, left) in product(enumerate(self.tops), enumerate(self.lefts)):
            outputs = run(np.ascontiguousarray(view[:, top : top + height, left : left + width]))
            weights = self.row_weights[i][:, None] * self.column_weights[j]
            blended[top : top + height, left : left + width] += outputs["map"][0] * weights
            scores.append(float(outputs["score"][0]))
            descriptions.append(outputs["description"][0])
        return max(scores) + self._unlike(np.mean(descriptions, axis=0)), blended

    def _unlike(self, description: NDArray[np.float32]) -> float:
        """Return what is added to the score of an image with this description (D,)."""
        if self.whole is None:
            return 0.0
        differences = (description - self.center).astype(np.float64) - self.known
        distance = float(np.sqrt(np.square(differences).sum(1).min()))
        added: float = self.whole["slope"] * max(distance - self.whole["free"], 0.0)
        return added


def _unpacked(packed: Mapping[str, Any]) -> NDArray[np.float32]:
    values = np.frombuffer(base64.b64decode(packed["float32"]), dtype="<f4").reshape(packed["shape"])
    return values.astype(np.float32)
