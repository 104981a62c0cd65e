"""Scoring of a batch of paths or URLs, any of which may be unreadable."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._inputs.decoding import check_regular_file, decoding, known_formats
from skpbas.errors import InvalidImageError


def score_batch(detector: Any, uris: Sequence[str]) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Score a batch; return scores (n,), NaN for failed images, and their error messages by position."""
    scores = np.full(len(uris), np.nan)
    items: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for i, uri in enumerate(uris):
        try:
            items[i] = _fetch(uri)
        except (ImportError, MemoryError):  # missing package or too little memory
            raise
        except Exception as error:  # noqa: BLE001 - each file system has its own errors
            errors[i] = _describe(error, uri)
    try:
        if items:
            scores[list(items)] = detector.score_samples(list(items.values()))
    except Exception:  # noqa: BLE001 - the failing images are found one by one
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
            errors[i] = _describe(error, uris[i])
        except Exception as error:  # noqa: BLE001 - a bug of the detector must not end the run
            errors[i] = _describe(error, uris[i])
            unexpected.append(error)
    if len(unexpected) == len(items) > 1:
        raise unexpected[0]  # not caused by individual images


def _fetch(uri: str) -> Any:
    """Return a path as it is, or the image at a URL."""
    if "://" not in uri:
        return uri
    if uri.startswith("file://"):
        check_regular_file(url2pathname(urlsplit(uri).path), uri)  # opening a named pipe would block forever
    with fsspec.open(uri, "rb") as file:
        content = file.read()
    with decoding(uri):
        image = Image.open(io.BytesIO(content), formats=known_formats())
        image.load()
    return image


def _describe(error: Exception, uri: str) -> str:
    """Return an error message that names the image by its URI."""
    if isinstance(error, InvalidImageError):
        text = str(error).replace(f"X[0] ({uri})", uri).replace("X[0]", uri)
        return text if uri in text else f"{uri}: {text}"
    return f"{uri}: {type(error).__name__}: {error}"
