"""What training reads at every step: each level's part of the patch features, computed once an image."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from skpbas.errors import StorageError

STORED_DTYPES = {"auto": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""Storage of feature maps, by the parameter ``precision``."""

MEMORY_BUDGET = 4 * 2**30
"""Bytes of maps that are kept in memory; a larger store lies in a temporary file."""

_HALF_PRECISION_LIMIT = 6e4  # float16 ends at 65,504


class FeatureStore:
    """One map a level of each of a set of images.

    Kept are the levels' parts of the patch features, at the levels' own resolutions: smaller than the features
    themselves (1.9 MiB an image for WideResNet50-2 at 256 pixels in float16, 0.5 MiB for ResNet18), with nothing left
    to do for a step but to read and interpolate.

    They lie on the GPU where one computes and half of its free memory holds them, otherwise in memory as long as they
    fit into ``budget``, otherwise in a temporary file without a name: the system takes it back with the process,
    however that ends.

    Parameters
    ----------
    n_images : int
    shapes : sequence of (int, int, int)
        Channels, height and width of each level.
    dtype : torch.dtype
        Storage; float16 becomes float32 where a value would not fit.
    device : torch.device
        Where the maps will be used.
    budget : int
        Bytes in memory.

    Raises
    ------
    StorageError
        The disk has no room for the temporary file.
    """

    def __init__(
        self,
        n_images: int,
        shapes: Sequence[tuple[int, int, int]],
        dtype: torch.dtype,
        device: torch.device | None = None,
        budget: int = MEMORY_BUDGET,
    ) -> None:
        self.grids = [(height, width) for _, height, width in shapes]
        whole = [(n_images, h, w, c) for c, h, w in shapes]  # a position's channels lie together
        nbytes = sum(math.prod(shape) for shape in whole) * dtype.itemsize
        self.device = _home(nbytes, device or torch.device("cpu"))
        self.mapped = self.device.type == "cpu" and nbytes > budget
        self._levels = [self._allocate(shape, dtype) for shape in whole]

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def nbytes(self) -> int:
        """Bytes that the maps take."""
        return sum(level.nbytes for level in self._levels)

    @property
    def tables(self) -> list[Tensor]:
        """The maps as (n * H_l * W_l, C_l) tables, in place."""
        return [level.flatten(0, 2) for level in self._levels]

    @cached_property
    def digest(self) -> str:
        """Name of the content, once all maps are written."""
        digest = hashlib.blake2b(str([level.shape for level in self._levels]).encode(), digest_size=20)
        for level in self._levels:
            for image in level:
                digest.update(image.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def put(self, start: int, maps: Sequence[Tensor]) -> None:
        """Write the maps (B, C_l, H_l, W_l) of a batch of images from position ``start``."""
        for i, level in enumerate(maps):
            if self._levels[i].dtype == torch.float16 and not fits_half_precision(level):
                self._widen(i, filled=start)
            self._levels[i][start : start + len(level)].copy_(level.permute(0, 2, 3, 1))

    def get(self, index: Tensor) -> list[Tensor]:
        """Return the maps (B, C_l, H_l, W_l), as stored, of the images at ``index``, which is on the CPU."""
        return [level[index.to(level.device)].permute(0, 3, 1, 2) for level in self._levels]

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.mapped:
            return _mapped(shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _widen(self, i: int, filled: int) -> None:
        """Go over to float32 for a level, of which ``filled`` images are written."""
        wide = self._allocate(tuple(self._levels[i].shape), torch.float32)
        for image in range(filled):  # one by one: a mapped level may be larger than memory
            wide[image] = self._levels[i][image].float()
        self._levels[i] = wide


def fits_half_precision(level: Tensor) -> bool:
    """Say whether float16 can hold all values."""
    return float(level.abs().max()) <= _HALF_PRECISION_LIMIT


def _home(nbytes: int, device: torch.device) -> torch.device:
    if device.type == "cuda" and nbytes < torch.cuda.mem_get_info(device)[0] // 2:
        return device
    return torch.device("cpu")


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make a tensor in a temporary file that has no name (on Windows: that goes with its last handle)."""
    nbytes, folder = math.prod(shape) * dtype.itemsize, tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    way_out = (
        "free some space, let the variable TMPDIR name a folder on a larger disk, or train on fewer images or at a "
        "smaller image_size"
    )
    if free < nbytes:
        raise StorageError(
            f"the features of the training images need {nbytes / 1e9:.1f} GB on disk, and {folder} has "
            f"{free / 1e9:.1f} GB free: {way_out}"
        )
    with tempfile.TemporaryFile(prefix="skpbas-features-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, nbytes)  # or a full disk would show as a crash at the first write
            mapped = np.memmap(file, np.uint8, "r+", shape=(nbytes,))
        except OSError as error:
            raise StorageError(
                f"no room for {nbytes / 1e9:.1f} GB of training features in {folder} ({error}): {way_out}"
            ) from error
    return torch.from_numpy(mapped).view(dtype).view(shape)
