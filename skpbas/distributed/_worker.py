"""Scores of a batch of images by name, any of which may be bad."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._inputs.decoding import decoding, known_formats
from skpbas.errors import InvalidImageError


def score_batch(detector: Any, uris: Sequence[str]) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Score a batch; return scores (n,), NaN for images without one, and by position why they have none."""
    scores = np.full(len(uris), np.nan)
    items: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for i, uri in enumerate(uris):
        try:
            items[i] = _fetched(uri)
        except (ImportError, MemoryError):  # a package that the protocol needs, or too small a machine
            raise
        except Exception as error:  # noqa: BLE001 - every file system has errors of its own
            errors[i] = _described(error, uri)
    try:
        if items:
            scores[list(items)] = detector.score_samples(list(items.values()))
    except Exception:  # noqa: BLE001 - whatever it is, the images say one by one which of them have it
        _score_one_by_one(detector, uris, items, scores, errors)
    for i in np.flatnonzero(~np.isfinite(scores)).tolist():
        errors.setdefault(i, f"{uris[i]}: the detector's score is {scores[i]}")
    scores[list(errors)] = np.nan
    return scores, errors


def _score_one_by_one(
    detector: Any, uris: Sequence[str], items: dict[int, Any], scores: NDArray[np.float64], errors: dict[int, str]
) -> None:
    unexpected: list[Exception] = []
    for i, item in items.items():
        try:
            scores[i] = detector.score_samples([item])[0]
        except (InvalidImageError, OSError) as error:
            errors[i] = _described(error, uris[i])
        except Exception as error:  # noqa: BLE001 - one image in a million may find what no test has found
            errors[i] = _described(error, uris[i])
            unexpected.append(error)
    if len(unexpected) == len(items) > 1:
        raise unexpected[0]  # it is not the images


def _fetched(uri: str) -> Any:
    """Return what the detector takes: the path itself, or the image behind a URL."""
    if "://" not in uri:
        return uri
    with fsspec.open(uri, "rb") as file:
        content = file.read()
    with decoding(uri):
        image = Image.open(io.BytesIO(content), formats=known_formats())
        image.load()
    return image


def _described(error: Exception, uri: str) -> str:
    """Return an error's text, which names the image by its uri."""
    if isinstance(error, InvalidImageError):
        text = str(error).replace(f"X[0] ({uri})", uri).replace("X[0]", uri)
        return text if uri in text else f"{uri}: {text}"
    return f"{uri}: {type(error).__name__}: {error}"
