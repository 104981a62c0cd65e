"""Feature maps cached across fits, keyed by image and network contents: the parameter ``memory``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import joblib
import numpy as np
import torch
from PIL import ExifTags, Image
from sklearn.utils.validation import check_memory
from torch import Tensor, nn

from skpbas._compat import version_of
from skpbas._features.store import fits_half_precision
from skpbas._inputs.images import Geometry
from skpbas.core.backbones import FeatureExtractor


class _NotCachedError(LookupError):
    """The cache has no entry for the key."""


def _entry(key: str, maps: Sequence[Tensor] | None, input_shape: tuple[int, int] | None) -> Any:
    """Return the value to store; joblib calls this only if the key has no entry."""
    if maps is None:
        raise _NotCachedError(key)
    return list(maps), input_shape


class MapCache:
    """On-disk cache of the feature maps of images, in a ``joblib.Memory``.

    The key of an entry covers the image (the bytes of its file, or its pixels) and everything that its feature maps
    depend on: the network with its weights, the input size, the resize mode and the precision. Entries are written
    atomically, so any number of processes may share the folder.

    Parameters
    ----------
    memory : str, Path or joblib.Memory
    extractor : FeatureExtractor
    resize : str
    dtype : torch.dtype
        Storage type of the feature maps; float32 replaces float16 if a value is out of its range.
    """

    def __init__(self, memory: Any, extractor: FeatureExtractor, resize: str, dtype: torch.dtype) -> None:
        self.dtype, self.extractor, self.resize = dtype, extractor, resize
        self.memory = check_memory(str(memory) if isinstance(memory, PathLike) else memory)
        self._entries = self.memory.cache(_entry, ignore=["maps", "input_shape"])
        settings = (extractor.image_size, resize, str(extractor.precision), str(dtype))
        self._network = joblib.hash((network_digest(extractor.backbone), settings))

    def key(self, item: Any) -> str:
        """Return the key of an image; raises OSError if its file cannot be read."""
        digest = hashlib.blake2b(self._network.encode(), digest_size=20)
        if isinstance(item, (str, PathLike)):
            digest.update(Path(item).read_bytes())
            return digest.hexdigest()
        if isinstance(item, Image.Image):
            digest.update(f"{item.mode} {item.getexif().get(ExifTags.Base.Orientation)}".encode())
            item = item.convert("RGBA") if item.mode == "P" else item
        pixels = item.numpy(force=True) if isinstance(item, Tensor) else np.asarray(item)
        digest.update(f"{pixels.shape} {pixels.dtype}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    def find(self, key: str) -> tuple[list[Tensor], Geometry] | None:
        """Return an image's feature maps, (1, C_l, H_l, W_l) each, and its geometry, or None if not cached."""
        try:
            maps, input_shape = self._entries(key, None, None)
        except _NotCachedError:
            return None
        return maps, Geometry.of(input_shape, self.extractor.image_size, self.resize)

    def store(self, key: str, maps: Sequence[Tensor], geometry: Geometry) -> list[Tensor]:
        """Store an image's feature maps (1, C_l, H_l, W_l); return them as :meth:`find` will."""
        narrow = [level.cpu() for level in maps]
        if self.dtype != torch.float16 or all(map(fits_half_precision, narrow)):
            narrow = [level.to(self.dtype) for level in narrow]
        self._entries.call(key, narrow, geometry.input_shape)  # does not read an existing, damaged entry
        return narrow


@dataclass(frozen=True)
class _KnownDigest:
    """The digest of a network, with a cheap fingerprint that detects changed weights."""

    digest: str
    fingerprint: tuple[Any, ...]
    tensors: list[Tensor]  # keeps their memory from being reused for other weights


_KNOWN: WeakKeyDictionary[nn.Module, _KnownDigest] = WeakKeyDictionary()


def network_digest(network: nn.Module) -> str:
    """Return a hash of a network and its weights, recomputed only when they change.

    Changes are detected by the address, version and checksum of each tensor; the checksum catches writes that bypass
    torch's version counter, through ``.data`` or a numpy view.
    """
    state = network.state_dict()
    tensors = list(state.values())
    fingerprint = tuple(
        (name, tensor.data_ptr(), tensor.shape, tensor.dtype, _version(tensor), _checksum(tensor))
        for name, tensor in state.items()
    )
    known = _KNOWN.get(network)
    if known is not None and known.fingerprint == fingerprint:
        return known.digest
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
    digest = str(joblib.hash((repr(network), weights, getattr(network, "layers", None))))
    _KNOWN[network] = _KnownDigest(digest, fingerprint, tensors)
    return digest


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else version_of(tensor)


def _checksum(tensor: Tensor) -> int:
    """Return the sum of a tensor's memory, read as 64-bit integers."""
    dense = tensor.detach()
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        dense = dense.permute(0, 2, 3, 1)  # memory order, so that nothing is copied
    bits = dense.contiguous().view(-1).view(torch.uint8)
    whole = bits[: len(bits) // 8 * 8].view(torch.int64)
    return int(whole.sum()) + int(bits[len(whole) * 8 :].sum())
