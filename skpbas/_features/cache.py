"""Feature maps kept across fits, by the content of the image and of the network: the parameter ``memory``."""

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


class _NotKeptError(LookupError):
    """There is no entry, and nothing to make one from."""


def _entry(key: str, maps: Sequence[Tensor] | None, input_shape: tuple[int, int] | None) -> Any:
    """Return what is to be kept; joblib calls it only if there is no entry with that key."""
    if maps is None:
        raise _NotKeptError(key)
    return list(maps), input_shape


class MapCache:
    """Feature maps of images on disk, in a ``joblib.Memory``.

    An entry belongs to an image's content (the bytes of its file, or its pixels) and to all that its feature maps
    depend on: the network with its weights, the size and way of resizing, and the precision. Entries are written whole
    or not at all, so any number of processes may share the folder.

    Parameters
    ----------
    memory : str, Path or joblib.Memory
    extractor : FeatureExtractor
    resize : str
    dtype : torch.dtype
        Of the kept feature maps; float16 becomes float32 where a value would not fit.
    """

    def __init__(self, memory: Any, extractor: FeatureExtractor, resize: str, dtype: torch.dtype) -> None:
        self.dtype, self.extractor, self.resize = dtype, extractor, resize
        self.memory = check_memory(str(memory) if isinstance(memory, PathLike) else memory)
        self._entries = self.memory.cache(_entry, ignore=["maps", "input_shape"])
        settings = (extractor.image_size, resize, str(extractor.precision), str(dtype))
        self._network = joblib.hash((network_digest(extractor.backbone), settings))

    def key(self, item: Any) -> str:
        """Return the name of an image's entry; OSError if its file cannot be read."""
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
        """Return an image's feature maps, (1, C_l, H_l, W_l) each, and its geometry, if they are kept."""
        try:
            maps, input_shape = self._entries(key, None, None)
        except _NotKeptError:
            return None
        return maps, Geometry.of(input_shape, self.extractor.image_size, self.resize)

    def keep(self, key: str, maps: Sequence[Tensor], geometry: Geometry) -> list[Tensor]:
        """Write an image's feature maps (1, C_l, H_l, W_l); return them as they will be found."""
        narrow = [level.cpu() for level in maps]
        if self.dtype != torch.float16 or all(map(fits_half_precision, narrow)):
            narrow = [level.to(self.dtype) for level in narrow]
        self._entries.call(key, narrow, geometry.input_shape)  # writes without looking for a (damaged) entry first
        return narrow


@dataclass(frozen=True)
class _KnownDigest:
    """The digest of a network, and what shows cheaply that its weights are still the same."""

    digest: str
    fingerprint: tuple[Any, ...]
    tensors: list[Tensor]  # held so that no other weights are allocated at their addresses


_KNOWN: WeakKeyDictionary[nn.Module, _KnownDigest] = WeakKeyDictionary()


def network_digest(network: nn.Module) -> str:
    """Return a name for a network and its weights, hashed once for as long as they do not change.

    A changed weight shows in its place in memory, its version or its checksum: the last notices what is written past
    torch, through ``.data`` or a numpy view.
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
    """Return a sum over the bits of a tensor, in one pass over its memory."""
    dense = tensor.detach()
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        dense = dense.permute(0, 2, 3, 1)  # the order in memory, without a copy
    bits = dense.contiguous().view(-1).view(torch.uint8)
    whole = bits[: len(bits) // 8 * 8].view(torch.int64)
    return int(whole.sum()) + int(bits[len(whole) * 8 :].sum())
