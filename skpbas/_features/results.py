"""What is said of one image; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Result"]


@dataclass(frozen=True, slots=True)
class Result:
    """Result for one image of a stream.

    Attributes
    ----------
    index : int
        Position in the stream, from 0.
    name : str
        Path of an image that was passed as a path; otherwise ``images[index]``.
    score : float or None
        ``score_samples`` of the image: higher is more normal. None if the image is unusable.
    label : int or None
        +1 normal, -1 anomalous, as by ``predict``. None if the image is unusable.
    p_value : float or None
        As by ``p_values``. None if the image is unusable.
    map : ndarray of shape (H, W), float32, or None
        Anomaly map at the model's size; None with ``maps=False``, or if the image is unusable.
    error : str or None
        Why the image is unusable; otherwise None.
    verdict : str or None
        "normal", "unsure" or "anomalous", as by ``verdicts``. None if the image is unusable.
    """

    index: int
    name: str
    score: float | None
    label: int | None
    p_value: float | None = None
    map: NDArray[np.float32] | None = None
    error: str | None = None
    verdict: str | None = None


def judgments(judge: Any, score: float) -> dict[str, Any]:
    """Return label, p-value and verdict of one score, as :class:`Result` has them."""
    one = np.array([score])
    return {
        "label": int(judge.labels(one)[0]),
        "p_value": float(judge.p_values(one)[0]),
        "verdict": str(judge.verdicts(one)[0]),
    }
