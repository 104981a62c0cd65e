"""Storage of the features that training reads at every step: each level's part of the patch features."""

from __future__ import annotations

import copy
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

from skpbas._inputs.images import ViewDetails
from skpbas.core.patch_scores import ignored_at
from skpbas.errors import StorageError

STORED_DTYPES = {"auto": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""Storage types of features, by the parameter ``precision``."""

MEMORY_BUDGET = 4 * 2**30
"""Largest size in bytes of a store in memory; a larger one is a temporary file."""

_HALF_PRECISION_LIMIT = 6e4  # the largest float16 is 65,504


class FeatureStore:
    """Each level's part of the patch features of a set of images.

    The parts are stored at the resolution of their level, which takes less space than the patch features (1.9 MiB per
    image for WideResNet50-2 at 256 pixels in float16, 0.5 MiB for ResNet18) and leaves only interpolation to each
    training step.

    They are stored on the GPU if it is the device and half of its free memory suffices, otherwise in memory if they fit
    into ``budget``, otherwise in an unnamed temporary file, which the system removes when the process ends for any
    reason.

    Parameters
    ----------
    n_images : int
    shapes : sequence of (int, int, int)
        Channels, height and width of each level.
    dtype : torch.dtype
        Storage type; float32 replaces float16 for a level with a value out of its range.
    device : torch.device
        Device that uses the parts.
    budget : int
        Largest size in memory, in bytes.

    Attributes
    ----------
    fingerprints : list of str
        Of the images, in their order, if they are known.
    earlier : list of str
        Fingerprints of the images of earlier fits, whose numbers come before.
    ignored : Tensor of shape (n_images, H_0 * W_0), bool, or None
        Patches that do not count, on the CPU. None: all count.
    ignored_share : float
        Largest share of the pixels of an image that do not count.
    details : list of ViewDetails
        Likewise.

    Raises
    ------
    StorageError
        The disk has too little space for the temporary file.
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
        whole = [(n_images, h, w, c) for c, h, w in shapes]  # channels of a position are contiguous
        nbytes = sum(math.prod(shape) for shape in whole) * dtype.itemsize
        self.device = _storage_device(nbytes, device or torch.device("cpu"))
        self.mapped = self.device.type == "cpu" and nbytes > budget
        self._levels = [self._allocate(shape, dtype) for shape in whole]
        self.fingerprints: list[str] = []
        self.earlier: list[str] = []
        self.ignored: Tensor | None = None
        self.ignored_share = 0.0
        self.details: list[ViewDetails] = []

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(level.nbytes for level in self._levels)

    @property
    def tables(self) -> list[Tensor]:
        """The parts as tables (n * H_l * W_l, C_l), which share memory with the store."""
        return [level.flatten(0, 2) for level in self._levels]

    @cached_property
    def digest(self) -> str:
        """Hash of the content; valid once all images are written."""
        digest = hashlib.blake2b(str([level.shape for level in self._levels]).encode(), digest_size=20)
        for level in self._levels:
            for image in level:
                digest.update(image.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def levels(self, which: slice) -> FeatureStore:
        """Return a store of some of the levels, which shares memory with this one, once all images are written."""
        part = copy.copy(self)
        part.grids, part._levels = self.grids[which], self._levels[which]
        if self.ignored is not None:
            part.ignored = ignored_at(self.ignored, self.grids[0], part.grids[0])
        vars(part).pop("digest", None)
        return part

    def put(self, start: int, maps: Sequence[Tensor]) -> None:
        """Write the parts (B, C_l, H_l, W_l) of a batch of images, starting at index ``start``."""
        for i, level in enumerate(maps):
            if self._levels[i].dtype == torch.float16 and not fits_half_precision(level):
                self._widen(i, filled=start)
            self._levels[i][start : start + len(level)].copy_(level.permute(0, 2, 3, 1))

    def get(self, index: Tensor) -> list[Tensor]:
        """Return the parts (B, C_l, H_l, W_l), as stored, of the images at ``index`` (on the CPU)."""
        return [level[index.to(level.device)].permute(0, 3, 1, 2) for level in self._levels]

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.mapped:
            return _mapped(shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _widen(self, i: int, filled: int) -> None:
        """Convert a level to float32; its first ``filled`` images have been written."""
        wide = self._allocate(tuple(self._levels[i].shape), torch.float32)
        for image in range(filled):  # one at a time: a memory-mapped level may be larger than memory
            wide[image] = self._levels[i][image].float()
        self._levels[i] = wide


def fits_half_precision(level: Tensor) -> bool:
    """Return whether float16 can represent all values."""
    return float(level.abs().max()) <= _HALF_PRECISION_LIMIT


def _storage_device(nbytes: int, device: torch.device) -> torch.device:
    if device.type == "cuda" and nbytes < torch.cuda.mem_get_info(device)[0] // 2:
        return device
    return torch.device("cpu")


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate a tensor in an unnamed temporary file (on Windows: one deleted with its last handle)."""
    nbytes, folder = math.prod(shape) * dtype.itemsize, tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    hint = (
        "free some space, set the environment variable TMPDIR to a folder on a larger disk, or use fewer images or a "
        "smaller image_size"
    )
    if free < nbytes:
        raise StorageError(
            f"the features of the training images need {nbytes / 1e9:.1f} GB on disk, but {folder} has only "
            f"{free / 1e9:.1f} GB free: {hint}"
        )
    with tempfile.TemporaryFile(prefix="skpbas-features-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, nbytes)  # a full disk would crash the first write
            mapped = np.memmap(file, np.uint8, "r+", shape=(nbytes,))
        except OSError as error:
            raise StorageError(
                f"cannot store {nbytes / 1e9:.1f} GB of training features in {folder} ({error}): {hint}"
            ) from error
    return torch.from_numpy(mapped).view(dtype).view(shape)
