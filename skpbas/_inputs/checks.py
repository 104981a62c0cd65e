"""Checks on X; needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._inputs.decoding import (
    channels_last,
    check_regular_file,
    check_values,
    item_name,
    tensor_to_array,
    too_many_channels,
    unmasked,
)
from skpbas._inputs.tensors import is_loader, is_tensor
from skpbas.errors import ImageNotFoundError, InvalidImageError

_EXPECTED = (
    "must be images: an array (n, H, W, 3) or (n, H, W), or a sequence of paths, PIL images or arrays (H, W[, 3])"
)
_SHOWN_FILES = 10


def check_images(X: Any, name: str = "X", *, each: bool = True) -> Sequence[Any] | NDArray[Any]:
    """Check X without decoding files, and return it as an array or a sequence.

    A sequence that loads its items on access is returned as it is, and no item is accessed.

    Parameters
    ----------
    X : array or sequence of images
        A generator is read to its end.
    name : str
        Name of X in errors.
    each : bool
        Check each path and the values of each image in an array.

    Raises
    ------
    InvalidImageError
        X is not a sequence of images, is empty, or is an array with invalid pixel values.
    ImageNotFoundError
        Paths do not name files.
    """
    _refuse_what_is_no_sequence(X, name)
    if is_tensor(X):
        _check_tensor(X, name)
        X = tensor_to_array(X, name)
    elif _is_table(X):
        X = _only_column(X, name)
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUT":
            X = X[:, 0]  # a column of paths
        if not (X.ndim == 1 and X.dtype.kind in "OUT"):
            _check_image_array(X, name)
            for index in range(len(X) if each else 0):  # X may be memory-mapped and larger than memory
                check_values(X[index], f"{name}[{index}]")
            return X
        X = X.tolist()
    if not _is_indexed(X):
        X = list(_iterable(X, name))
    if len(X) == 0:
        raise InvalidImageError(f"{_what(name)}; got 0 images")
    if each and isinstance(X, (list, tuple)):
        _check_paths(X, name)  # fail now and not after hours of work
    return X


def image_items(X: Any) -> Any:
    """Return images that were checked elsewhere, or other samples, by position: a column's values, a list, or X."""
    if isinstance(X, np.ndarray):
        return X[:, 0] if X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUT" else X
    if _is_table(X):
        return _only_column(X, "X") if not hasattr(X, "columns") or len(X.columns) == 1 else X
    return X if _is_indexed(X) and not isinstance(X, Mapping) else list(X)


def check_stream(X: Any, name: str = "X", *, each: bool = True) -> Any:
    """Check X as :func:`check_images` does, but return an iterator as it is, without advancing it."""
    if is_tensor(X) or isinstance(X, np.ndarray) or _is_table(X) or _is_indexed(X):
        return check_images(X, name, each=each)
    _refuse_what_is_no_sequence(X, name)
    return _iterable(X, name)


def _is_indexed(X: Any) -> bool:
    return hasattr(X, "__len__") and hasattr(X, "__getitem__")


def _iterable(X: Any, name: str) -> Iterable[Any]:
    if not isinstance(X, Iterable):
        raise InvalidImageError(f"{_what(name)}; got {type(X).__name__}")
    return X


def _what(name: str) -> str:
    return f"{name} {_EXPECTED}"


def _refuse_what_is_no_sequence(X: Any, name: str) -> None:
    if isinstance(X, (str, bytes, PathLike)):
        raise InvalidImageError(f"{_what(name)}; got {_single_path(X)}")
    if isinstance(X, Image.Image):
        raise InvalidImageError(f"{_what(name)}; got a single PIL image; pass [image]")
    if isinstance(X, Mapping):
        keys = [key for key in X if isinstance(key, str)]
        key = next((key for key in ("images", "image", "paths", "path") if key in keys), None)
        way_out = f"pass {name}[{key!r}]" if key else f"pass list({name}.values()) if its values are the images"
        raise InvalidImageError(f"{_what(name)}; got a {type(X).__name__} with the keys {list(X)[:8]}: {way_out}")
    if isinstance(X, (set, frozenset)):
        raise InvalidImageError(f"{_what(name)}; got a {type(X).__name__}, which has no order; pass sorted({name})")
    if is_loader(X):
        raise InvalidImageError(
            f"{_what(name)}; got a DataLoader, which yields batches; pass its dataset's images, "
            "[image for batch in loader for image in batch], channels last"
        )


def _single_path(X: Any) -> str:
    path = Path(fspath(X) if not isinstance(X, bytes) else X.decode(errors="replace"))
    try:
        is_folder = path.is_dir()
    except ValueError:  # a null character
        is_folder = False
    if is_folder:
        return f"the folder {str(path)!r}: list its images with skpbas.datasets.list_images({str(path)!r})"
    return f"the single path {str(path)!r}; pass a list, [path]"


def _is_table(X: Any) -> bool:
    """Return whether X is a table or a column of pandas or the like."""
    return hasattr(X, "columns") or (hasattr(X, "to_numpy") and hasattr(X, "dtype") and hasattr(X, "name"))


def _only_column(X: Any, name: str) -> list[Any]:
    """Return the values of a table's only column, or of a column, in their order."""
    if not hasattr(X, "columns"):
        return list(X)
    columns = list(getattr(X, "column_names", X.columns))  # pyarrow's columns are the data
    if len(columns) != 1:
        raise InvalidImageError(
            f"{_what(name)}; got a {type(X).__name__} with the columns {columns[:8]}: pass the column of paths, such "
            f"as {name}[{(columns or ['path'])[0]!r}]"
        )
    column = X[columns[0]]
    return list(column.to_pylist() if hasattr(column, "to_pylist") else column)


def _check_tensor(X: Any, name: str) -> None:
    shape = tuple(X.shape)
    if X.ndim == 4 and X.shape[-1] not in (1, 3, 4) and X.shape[1] in (1, 3, 4):
        raise InvalidImageError(
            f"{_what(name)}; got a tensor of shape {shape}; channels must come last: "
            f"{name}.{channels_last(X, batch=True)}"
        )
    if X.ndim == 3 and X.shape[0] in (3, 4) and X.shape[-1] not in (1, 3, 4):
        raise InvalidImageError(
            f"{name} is a tensor of shape {shape}, by torch's convention one image of {shape[0]} channels: pass "
            f"{name}.{channels_last(X, batch=False)}[None] for that image, or {name}[..., None] for {shape[0]} "
            "grayscale images"
        )


def _check_image_array(X: NDArray[Any], name: str) -> None:
    shape = tuple(X.shape)
    if X.ndim not in (3, 4):
        single = f"; pass a single image as {name}[None]" if X.ndim == 2 else ""
        raise InvalidImageError(f"{_what(name)}; got an array of {X.ndim} dimensions, shape {shape}{single}")
    if X.ndim == 3 and X.shape[-1] in (1, 3, 4) and len(X):
        raise InvalidImageError(f"{_what(name)}; got shape {shape}: pass a single image as {name}[None]")
    if X.ndim == 4 and X.shape[-1] not in (1, 3, 4):
        way_out = (
            f"channels must come last: {name}.transpose(0, 2, 3, 1)"
            if X.shape[1] in (1, 3, 4)
            else too_many_channels(X.shape, name)
        )
        raise InvalidImageError(f"{_what(name)}; got shape {shape}; {way_out}")
    if len(X) == 0:
        raise InvalidImageError(f"{_what(name)}; got 0 images (shape {shape})")


def _check_paths(X: Sequence[Any], name: str) -> None:
    """Check that all paths name files; one error names all that do not."""
    errors: list[InvalidImageError] = []
    for index, item in enumerate(map(unmasked, X)):
        if isinstance(item, (str, PathLike)):
            try:
                check_regular_file(item, item_name(item, index, name))
            except InvalidImageError as error:
                errors.append(error)
    if errors:
        raise of_several(errors, len(X))


def of_several(errors: Sequence[InvalidImageError], n_images: int) -> InvalidImageError:
    """Return one error for all unusable images: the only one, or a list of the first ten."""
    if len(errors) == 1:
        return errors[0]
    kind = ImageNotFoundError if all(isinstance(error, ImageNotFoundError) for error in errors) else InvalidImageError
    lines = [str(error) for error in errors[:_SHOWN_FILES]]
    if len(errors) > _SHOWN_FILES:
        lines.append(f"and {len(errors) - _SHOWN_FILES} more")
    return kind(f"{len(errors)} of {n_images} images are unusable:\n  " + "\n  ".join(lines))
