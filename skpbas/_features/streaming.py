"""Results image by image: scores, anomaly maps, and streams that continue after unusable images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skpbas._features.results import Result, judgments
from skpbas._features.scoring import (
    ScoredBatch,
    apart_from_caller,
    iter_results,
    iter_scored,
    iter_stream,
    raised,
)
from skpbas._inputs.images import check_stream
from skpbas.core.model import PBASModel
from skpbas.errors import InvalidImageError

__all__ = ["Result", "StreamingMixin", "judgments"]


class StreamingMixin:
    """Methods of a detector that accept any iterable of images and hold one image at a time."""

    _snapshot: Callable[[], Any]
    _judge: Callable[..., Any]

    def iter_anomaly_maps(self, X: Any, size: str = "model") -> Iterator[NDArray[np.float32]]:
        """Yield the anomaly maps of :meth:`anomaly_map` one by one, in memory that does not grow with their number.

        Parameters
        ----------
        X : array, sequence or iterable of images
            As for :meth:`iter_scores_and_maps`.
        size : {"model", "input"}, default="model"

        Yields
        ------
        ndarray of shape (H, W), float32 in [0, 1]
        """
        return (anomaly_map for _, anomaly_map in self.iter_scores_and_maps(X, size=size))

    def iter_scores_and_maps(self, X: Any, size: str = "model") -> Iterator[tuple[float, NDArray[np.float32]]]:
        """Yield ``score_samples`` and ``anomaly_map`` of one image after the other, from one pass of the network.

        Parameters
        ----------
        X : array, sequence or iterable of images
            A generator, such as one that yields a camera's frames, may be endless: each result is yielded before the
            next image is requested. Of a sequence, up to two images per thread of ``n_jobs`` are decoded in advance. A
            sequence is checked by the call, an iterator item by item.
        size : {"model", "input"}, default="model"

        Yields
        ------
        (float, ndarray of shape (H, W))
        """
        if size not in ("model", "input"):
            raise ValueError(f"size={size!r}: choose 'model' or 'input'")
        check_is_fitted(self)
        now = self._snapshot()
        items, model = check_stream(X), now.model_
        level_maps = now._level_maps(items, model.extractor, now._reading)
        if hasattr(items, "__getitem__"):
            scored = iter_scored(model, level_maps, name_all=False)
        else:
            scored = raised(iter_stream(model, level_maps))
        return iter_results(model, scored, to_input=size == "input")

    def score_stream(
        self, images: Any, *, on_error: str = "raise", maps: bool = True, unsure_rate: float = 0.05
    ) -> Iterator[Result]:
        """Yield a result for each image of a stream, in order, and optionally continue after unusable images.

        Parameters
        ----------
        images : array, sequence or iterable of images
            Requested one by one, as by :meth:`iter_scores_and_maps`.
        on_error : {"raise", "skip"}, default="raise"
            For an image that cannot be read or scored: "raise" raises the error; "skip" yields a result with the
            message in ``error`` and continues. Errors of the iterable itself are always raised.
        maps : bool, default=True
            Whether results include anomaly maps.
        unsure_rate : float in (0, 0.5], default=0.05
            As for :meth:`verdicts`.

        Yields
        ------
        Result
            Index, name, score, label, p-value, anomaly map, error and verdict: see :class:`skpbas.Result`.

        Raises
        ------
        InvalidImageError
            With ``on_error="raise"``: an image is unusable, or its score is not finite.

        Examples
        --------
        >>> import numpy as np
        >>> from skpbas import PBASDetector
        >>> from skpbas.datasets import make_inspection_images
        >>> good = make_inspection_images(n_normal=8, n_anomalous=0, size=64, random_state=0).images
        >>> detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0).fit(good)
        >>> frames = iter([good[0], np.zeros((2, 2)), good[1]])
        >>> for result in detector.score_stream(frames, on_error="skip", maps=False):
        ...     print(result.index, result.error or result.label)
        0 1
        1 images[1] is 2 x 2 pixels (height x width), smaller than 16, ...
        2 1
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: choose 'raise' or 'skip'")
        check_is_fitted(self)
        now = self._snapshot()
        items, model, judge = check_stream(images, "images", each=False), now.model_, now._judge(unsure_rate)
        stream = iter_stream(model, now._level_maps(items, model.extractor, now._reading, "images"))
        return apart_from_caller(_results(model, judge, stream, skip=on_error == "skip", maps=maps))


def _results(
    model: PBASModel,
    judge: Any,
    stream: Iterator[tuple[str, ScoredBatch | InvalidImageError]],
    *,
    skip: bool,
    maps: bool,
) -> Iterator[Result]:
    for index, (name, scored) in enumerate(stream):
        if isinstance(scored, InvalidImageError):
            if not skip:
                raise scored
            yield Result(index, name, None, None, error=str(scored))
            continue
        (score,) = scored.sample_scores
        anomaly_map = next(scored.anomaly_maps(model)) if maps else None
        yield Result(index, name, score, map=anomaly_map, **judgments(judge, score))
