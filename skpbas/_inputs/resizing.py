"""Antialiased bilinear resizing as torch does it, in numpy; bytes differ at most where a sum is close to a tie."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16  # outputs computed by one matrix product, which reads the inputs of all of them; measured, not critical
_LARGEST_BITS, _WEIGHT_BITS = 22, 15  # of torch's weights for 8-bit images

Blocks = tuple[tuple[slice, slice, NDArray[np.float32]], ...]
"""Inputs, outputs, and the matrix (outputs, inputs) between them."""


def resized_part(
    image: NDArray[Any], resized_shape: tuple[int, int], offset: tuple[int, int], part_shape: tuple[int, int]
) -> NDArray[Any]:
    """Return a part of an image (H, W, C), uint8 or float32, after resizing.

    Columns come first, and bytes are rounded in between, as in torch and Pillow. Floats equal torch's but for rounding.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
    resized_shape : (int, int)
        Height and width of the whole image after resizing.
    offset : (int, int)
        Top and left edge of the part.
    part_shape : (int, int)
        Height and width of the part.
    """
    height, width, n_channels = image.shape
    of_bytes = image.dtype == np.uint8
    rows = _blocks(height, resized_shape[0], offset[0], part_shape[0], of_bytes)
    columns = _blocks(width, resized_shape[1], offset[1], part_shape[1], of_bytes, n_channels)
    values = image.reshape(height, width * n_channels).astype(np.float32, copy=False)
    narrow = np.empty((height, part_shape[1] * n_channels), np.float32)
    for inputs, outputs, weights in columns:
        np.matmul(values[:, inputs], weights.T, out=narrow[:, outputs])
    if of_bytes:
        _round(narrow)
    small = np.empty((part_shape[0], narrow.shape[1]), np.float32)
    for inputs, outputs, weights in rows:
        np.matmul(weights, narrow[inputs], out=small[outputs])
    if of_bytes:
        _round(small)
    return small.reshape(*part_shape, n_channels).astype(image.dtype, copy=False)


def _round(values: NDArray[np.float32]) -> None:
    values += np.float32(0.5)
    np.floor(values, out=values)
    np.clip(values, 0, 255, out=values)


@lru_cache(16)
def _blocks(n_in: int, n_resized: int, first: int, n_out: int, of_bytes: bool, n_channels: int = 1) -> Blocks:
    """Return the blocks that make ``n_out`` of ``n_resized`` entries from ``n_in``, of interleaved channels each."""
    scale = n_in / n_resized
    support = max(scale, 1.0)
    center = (np.arange(n_resized) + 0.5) * scale
    start = np.floor(center - support + 0.5).astype(np.int64).clip(0)
    source = start[:, None] + np.arange(int(2 * support) + 2)
    weights = np.maximum(1 - np.abs(source + 0.5 - center[:, None]) / support, 0) * (source < n_in)
    weights /= weights.sum(1, keepdims=True)
    if of_bytes:
        unit = 2.0 ** min(np.floor(np.log2((2**_WEIGHT_BITS - 0.5) / weights.max())), _LARGEST_BITS)
        weights = np.floor(weights * unit + 0.5) / unit
    blocks = []
    for out in range(0, n_out, _BLOCK):
        some = slice(first + out, first + min(out + _BLOCK, n_out))
        begin, end = int(source[some].min()), min(int(source[some].max()) + 1, n_in)
        dense = np.zeros((some.stop - some.start, int(source[some].max()) + 1 - begin), np.float32)
        np.put_along_axis(dense, source[some] - begin, weights[some].astype(np.float32), axis=1)
        of_channels = np.kron(dense[:, : end - begin], np.eye(n_channels, dtype=np.float32))
        inputs = slice(begin * n_channels, end * n_channels)
        blocks.append((inputs, slice(out * n_channels, (out + len(dense)) * n_channels), of_channels))
    return tuple(blocks)
