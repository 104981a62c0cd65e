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

    def scored(
        self, view: NDArray[Any], run: Run, *, ignored: NDArray[np.bool_] | None = None, compared: bool = True
    ) -> tuple[float, NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the image score, higher for more anomalous, the anomaly map, and how many patches count.

        Parameters
        ----------
        view : ndarray of shape (1, H, W, 3)
        run : Run
        ignored : ndarray of shape (H, W), bool, or None
            Pixels that do not count, filled already; None for a graph that takes none. Tiles with such pixels are
            computed twice, because the score of patches that do not count is the mean of all others of the image.
        compared : bool, default=True
            Whether the image is compared as a whole.

        Returns
        -------
        score : float
        anomaly_map : ndarray of shape (H, W), float32
        counted : ndarray of shape (s,), float32, or None
            Patches that count at each scale; None without ``ignored``.
        """
        blended = np.zeros(self.image_shape, np.float32)
        scores, descriptions, again = [], [], []
        total, counted = 0.0, np.zeros(1, np.float32)
        height, width = self.shape

        def add(outputs: Mapping[str, NDArray[np.float32]], i: int, j: int) -> None:
            weights = self.row_weights[i][:, None] * self.column_weights[j]
            top, left = self.tops[i], self.lefts[j]
            blended[top : top + height, left : left + width] += outputs["map"][0] * weights
            scores.append(float(outputs["score"][0]))

        for (i, top), (j, left) in product(enumerate(self.tops), enumerate(self.lefts)):
            tile = {"images": np.ascontiguousarray(view[:, top : top + height, left : left + width])}
            if ignored is not None:
                tile["ignored"] = np.ascontiguousarray(ignored[None, top : top + height, left : left + width])
                tile["fill"] = np.zeros(1, np.float32)
            outputs = run(tile)
            descriptions.append(outputs["description"][0])
            if ignored is not None:
                total, counted = total + float(outputs["sum"][0]), counted + outputs["counted"][0]
                if tile["ignored"].any():
                    again.append((i, j, tile))
                    continue
            add(outputs, i, j)
        for i, j, tile in again:
            add(run({**tile, "fill": np.array([total / max(float(counted[0]), 1.0)], np.float32)}), i, j)
        unlike = self._unlike(np.mean(descriptions, axis=0)) if compared else 0.0
        return max(scores) + unlike, blended, None if ignored is None else counted

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
