"""Labels and masks, in scikit-learn's encoding of outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._inputs.formats import image_suffixes
from skpbas._inputs.mask_reader import are_defective, is_missing, numbers_of
from skpbas._inputs.tensors import is_tensor
from skpbas.errors import InvalidImageError, InvalidTargetError

_NORMAL_WORDS = ("good", "normal", "ok", "pass", "nominal", "")  # guesses for the example in an error message only
_SHOWN_VALUES = 5


def normal_rows(y: Any, n_images: int) -> NDArray[np.intp]:
    """Return the indices of the normal images.

    Parameters
    ----------
    y : None, labels or masks
        As for :func:`anomalous_rows`, without {0, 1}. None: all are normal.
    n_images : int

    Raises
    ------
    InvalidTargetError
        Wrong length, shape or encoding; the message shows the conversion.
    """
    return np.arange(n_images) if y is None else np.flatnonzero(~anomalous_rows(y, n_images))


def rows_to_learn(y: Any, n_images: int, *, fewest: int, method: str) -> NDArray[np.intp]:
    """Return the indices of the normal images; raise an error if there are fewer than ``method`` needs.

    Parameters
    ----------
    y : None, labels or masks
        As for :func:`normal_rows`.
    n_images : int
    fewest : int
    method : str
        Its name, in the error message.

    Raises
    ------
    InvalidImageError
        Too few normal images.
    InvalidTargetError
        As for :func:`normal_rows`.
    """
    rows = normal_rows(y, n_images)
    if len(rows) >= fewest:
        return rows
    needs = f"{method} needs at least {fewest} normal image{'s' if fewest > 1 else ''}"
    raise InvalidImageError(
        f"{needs}, got {len(rows)} (1 sample cannot show how normal images vary)"
        if y is None
        else f"{needs}; y marks {len(rows)} of {n_images} as normal"
    )


def anomalous_rows(y: Any, n_images: int, *, name: str = "y", zero_one: bool = False) -> NDArray[np.bool_]:
    """Return whether each image is anomalous; raise an error for everything that is neither labels nor masks.

    Parameters
    ----------
    y : labels or masks
        Labels (n,) or (n, 1): +1 normal, -1 anomalous, of any type of number, also as objects. Masks (n, H, W), or a
        sequence of masks, paths of masks and, for images without a mask, None, NaN or an empty string: an image with a
        defective pixel is anomalous. Strings are paths if they have the suffix of an image file.
    n_images : int
    name : str
        Name of y in error messages.
    zero_one : bool
        Whether to accept {0, 1} and booleans too, with 1 and True for anomalous.

    Returns
    -------
    ndarray of shape (n,), bool

    Raises
    ------
    InvalidTargetError
        Wrong length, shape or encoding; the message shows the conversion.
    """
    entries = entries_of(y, n_images, name)
    if are_masks(entries):
        return are_defective(entries, name)
    labels = _numbers(entries, name)
    values = np.unique(labels)
    if labels.dtype.kind != "b" and np.isin(values, (-1, 1)).all():
        return np.asarray(labels == -1)
    if zero_one and np.isin(values, (0, 1)).all():
        return np.asarray(labels == 1)
    expected = "+1 for normal and -1 for anomalous images" + (", or 0 (False) and 1 (True)" if zero_one else "")
    raise InvalidTargetError(
        f"{name} contains {_listed(values.tolist())}; expected {expected}, or masks. Convert it with "
        f"{_conversion(values, name if hasattr(y, 'dtype') else f'np.asarray({name})')}"
    )


def entries_of(y: Any, n_images: int, name: str = "y") -> Sequence[Any] | NDArray[Any]:
    """Return one entry per image: an array of numbers (n,) or (n, H, W), or a sequence of any objects.

    Raises
    ------
    InvalidTargetError
        Wrong length or shape, or no order.
    """
    if np.ma.is_masked(y):
        raise InvalidTargetError(f"{name} is an array with hidden entries: leave them out, or fill them")
    if is_tensor(y):
        y = numbers_of(y, name)
    elif hasattr(y, "to_numpy"):  # a column or a frame of pandas or polars
        y = y.to_numpy()
    elif hasattr(y, "__array__"):
        y = np.asarray(y)
    try:
        n_entries = len(y)
    except TypeError:  # numbers, generators, arrays without a dimension, sparse matrices
        n_entries = -1
    if n_entries < 0 or isinstance(y, (str, bytes, PathLike, Mapping, Set)):
        raise InvalidTargetError(f"{name} must be labels (n,) or masks (n, H, W), got {type(y).__name__}")
    if n_entries != n_images:
        raise InvalidTargetError(f"{name} has {n_entries} entries for {n_images} images")
    if not isinstance(y, np.ndarray):
        return y if isinstance(y, Sequence) else list(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind in "OUT":
        return list(y)
    if y.ndim not in (1, 3):
        raise InvalidTargetError(f"{name} must be labels (n,) or masks (n, H, W), got shape {y.shape}")
    return y


def are_masks(entries: Sequence[Any] | NDArray[Any]) -> bool:
    """Return whether the entries are masks; otherwise they should be labels.

    The first entry that is not missing decides. If all are None or "", they are the masks of normal images; if all are
    NaN, they may as well be labels that are missing.
    """
    if isinstance(entries, np.ndarray):
        return entries.ndim == 3
    for entry in entries:
        item = _unpacked(entry)
        if not is_missing(item):
            return _is_mask(item)
    return not any(isinstance(_unpacked(entry), (float, np.floating)) for entry in entries)


def _is_mask(item: Any) -> bool:
    if isinstance(item, str):
        return Path(item).suffix.lower() in image_suffixes()
    if isinstance(item, (PathLike, Image.Image)):
        return True
    try:
        return np.ndim(item) > 0
    except ValueError:  # rows of different lengths
        return True


def _unpacked(entry: Any) -> Any:
    """Return the scalar of an entry with one element, such as a row of a column; other entries unchanged."""
    is_array = isinstance(entry, (np.ndarray, np.generic)) or is_tensor(entry)
    if is_array and tuple(entry.shape) in ((), (1,)):
        return entry.item()
    return _unpacked(entry[0]) if isinstance(entry, (list, tuple)) and len(entry) == 1 else entry


def _numbers(entries: Sequence[Any] | NDArray[Any], name: str) -> NDArray[Any]:
    """Return labels as numbers or booleans (n,); words, missing values and other objects raise an error."""
    if isinstance(entries, np.ndarray):
        if entries.dtype.kind not in "iufb":
            raise InvalidTargetError(
                f"{name} contains {entries.dtype}; expected +1 for normal and -1 for anomalous images"
            )
        items: list[Any] = []
        missing = np.flatnonzero(np.isnan(entries))
    else:
        items = [_unpacked(entry) for entry in entries]
        if words := {item for item in items if isinstance(item, str)}:
            raise InvalidTargetError(_words_message(words, name, None in items))
        missing = np.flatnonzero([is_missing(item) for item in items])
    if len(missing):
        raise InvalidTargetError(
            f"{name}[{missing[0]}] is {_unpacked(entries[missing[0]])!r} ({len(missing)} of {len(entries)} entries "
            f"are missing); expected +1 for normal and -1 for anomalous images: leave out "
            "images without a label, or pass y=None if all images are normal"
        )
    if isinstance(entries, np.ndarray):
        return entries
    for i, item in enumerate(items):
        if not isinstance(item, Real):
            raise InvalidTargetError(
                f"{name}[{i}] is a {type(item).__name__}; expected +1 for normal and -1 for anomalous images, or a mask"
            )
    booleans = [isinstance(item, bool) for item in items]
    if any(booleans) and not all(booleans):
        i = booleans.index(True)
        raise InvalidTargetError(
            f"{name} mixes booleans ({name}[{i}] is {items[i]}) and numbers; expected +1 for normal and -1 for "
            "anomalous images"
        )
    try:
        return np.array(items, dtype=bool if any(booleans) else np.float64)
    except OverflowError:
        raise InvalidTargetError(
            f"{name} contains numbers that are too large; expected +1 for normal and -1 for anomalous images"
        ) from None


def _words_message(words: set[str], name: str, missing: bool) -> str:
    known = {word.strip().casefold(): word for word in sorted(words, reverse=True)}
    word = next((known[normal] for normal in _NORMAL_WORDS if normal in known), min(words))
    if missing and word.strip().casefold() not in _NORMAL_WORDS:
        convert = f"[-1 if word else 1 for word in {name}] if images without a word are normal"
    elif words <= {"1", "+1", "-1", "1.0", "-1.0"}:
        convert = f"np.asarray({name}, dtype=float)"
    else:
        convert = f"np.where(np.asarray({name}) == {_quoted(word)}, 1, -1) if {_quoted(word)} marks normal images"
    return (
        f"{name} contains the words {_listed(sorted(words), _quoted)}; expected +1 for normal and -1 for anomalous "
        f"images, or masks (paths of image files, None for images without one). Convert it with {convert}"
    )


def _conversion(values: NDArray[Any], y: str) -> str:
    """Return code that converts an array y with these values to labels, for each meaning that 1 may have."""
    if values.dtype.kind == "b":
        return f"np.where({y}, -1, 1) if True marks anomalous images, np.where({y}, 1, -1) if normal ones"
    if np.isin(values, (0, 1)).all():
        return f"np.where({y} == 1, -1, 1) if 1 marks anomalous images, np.where({y} == 1, 1, -1) if normal ones"
    if len(values) > 2 * _SHOWN_VALUES:
        return "np.where(normal, 1, -1), where normal is True for normal images"
    normal = 1 if np.isin((-1, 1), values).all() else values[0]
    unlabeled = ", and leave out the images of 0 if it means unlabeled" if normal == 1 and 0 in values else ""
    return f"np.where({y} == {normal:g}, 1, -1) if {normal:g} marks normal images{unlabeled}"


def _listed(values: list[Any], shown: Any = None) -> str:
    shown = shown or _number
    return ", ".join(map(shown, values[:_SHOWN_VALUES])) + (", ..." if len(values) > _SHOWN_VALUES else "")


def _number(value: Any) -> str:
    return f"{value:g}" if type(value) is not bool and float(f"{value:g}") == value else repr(value)


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
