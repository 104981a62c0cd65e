"""Feature maps cached across fits, keyed by image and network contents: the parameter ``memory``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor, nn

from skpbas._compat import version_of
from skpbas._features.digests import array_digest, digest_of, tensor_digest
from skpbas._features.entries import EntryFolder, are_finite, folder_of
from skpbas._features.module_keys import code_key
from skpbas._features.store import fits_half_precision
from skpbas._inputs.image_statistics import ImageStatistics
from skpbas._inputs.images import Geometry, ViewDetails
from skpbas.core.backbones import FeatureExtractor
from skpbas.core.backbones.levels import HookedModule


@dataclass(frozen=True)
class CachedImage:
    """The network's output for an image, and what else prediction needs of it.

    Attributes
    ----------
    maps : list of Tensor of shape (n_tiles, C_l, H_l, W_l)
    details : ViewDetails
    fingerprint : str
    """

    maps: list[Tensor]
    details: ViewDetails
    fingerprint: str


class MapCache:
    """On-disk cache of the feature maps of images.

    The key of an entry covers the image (the bytes of its file, or its pixels) and everything that its feature maps
    depend on: the network with its weights, the input size, the resize mode and the precision.

    Parameters
    ----------
    folder : EntryFolder
    extractor : FeatureExtractor
    resize : str
    dtype : torch.dtype
        Storage type of the feature maps; float32 replaces float16 if a value is out of its range.
    view_shape : (int, int) or None
        Height and width to which images are brought; None: those of the network's input.
    n_tiles : int
        Tiles of an image, which are the rows of its feature maps.

    Raises
    ------
    ValueError
        The backbone is a module given by the user, and no key can be computed for what it does.
    """

    def __init__(
        self,
        folder: EntryFolder,
        extractor: FeatureExtractor,
        resize: str,
        dtype: torch.dtype,
        view_shape: tuple[int, int] | None = None,
        n_tiles: int = 1,
    ) -> None:
        self.folder, self.dtype, self.extractor, self.resize = folder, dtype, extractor, resize
        self.view_shape, self.n_tiles = view_shape or extractor.image_size, n_tiles
        settings = (
            extractor.scale_shapes,
            self.view_shape,
            n_tiles,
            resize == "crop",
            str(extractor.precision),
            str(dtype),
        )
        self._network = digest_of(network_digest(extractor.backbone), repr(settings))

    @classmethod
    def of(
        cls,
        memory: Any,
        extractor: FeatureExtractor,
        resize: str,
        dtype: torch.dtype,
        *,
        writes: bool,
        view_shape: tuple[int, int] | None = None,
        n_tiles: int = 1,
    ) -> MapCache | None:
        """Return the cache for the parameter ``memory``, or None."""
        folder = folder_of(memory)
        if folder is None:
            return None
        try:
            return cls(EntryFolder(folder, writes=writes), extractor, resize, dtype, view_shape, n_tiles)
        except ValueError:
            if writes:
                raise
            return None  # reading alone is no reason to stop

    def key(self, item: Any, ignored: NDArray[np.bool_] | None = None) -> str:
        """Return the key of an image and of the pixels that it ignores; raises OSError if its file cannot be read."""
        if ignored is not None:
            return digest_of(self.key(item), "ignored", array_digest(ignored)).hex()
        if isinstance(item, (str, PathLike)):
            return digest_of(self._network, "file", Path(item).read_bytes()).hex()
        kind = "array"
        if isinstance(item, Image.Image):
            kind = f"{item.mode} {item.getexif().get(ExifTags.Base.Orientation)} {item.info.get('transparency')}"
            item = item.convert("RGBA") if item.mode in ("P", "PA") else item  # indices need their palette
        pixels = item.numpy(force=True) if isinstance(item, Tensor) else np.asarray(item)
        return digest_of(self._network, kind, array_digest(pixels)).hex()

    def find(self, key: str) -> CachedImage | None:
        """Return what is cached of an image, or None."""
        found = self.folder.read(key)
        if found is None or not self._fit(found[0]) or not _is_note(found[1]):
            return None
        stored, note = found
        statistics = ImageStatistics.from_note(note.get("statistics"))
        if statistics is None:
            return None
        geometry = Geometry.of(tuple(note["shape"]), self.view_shape, self.resize)
        details = ViewDetails(geometry, note["transparent"], note["more_frames"], statistics)
        return CachedImage(_channels_first(stored), details, note["fingerprint"])

    def narrowed(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return feature maps (n, C_l, H_l, W_l) as :meth:`store` takes them: on the CPU, in the storage type."""
        narrow = [level.cpu().contiguous(memory_format=torch.channels_last) for level in maps]
        if self.dtype != torch.float16 or all(map(fits_half_precision, narrow)):
            narrow = [level.to(self.dtype) for level in narrow]
        return narrow

    def store(self, key: str, image: CachedImage) -> list[Tensor]:
        """Store an image with narrowed feature maps; return them as :meth:`find` will."""
        details = image.details
        narrow = [level.permute(0, 2, 3, 1).contiguous() for level in image.maps]
        if len({level.dtype for level in narrow}) > 1:
            narrow = [level.float() for level in narrow]
        if self.folder.writes and self._fit(narrow):
            note = {
                "shape": list(details.geometry.input_shape),
                "transparent": details.transparent,
                "more_frames": details.more_frames,
                "fingerprint": image.fingerprint,
                "statistics": None if details.statistics is None else details.statistics.as_note(),
            }
            self.folder.write(key, narrow, note)
        return _channels_first(narrow)

    def _fit(self, stored: Sequence[Tensor]) -> bool:
        """Return whether these (n_tiles, H_l, W_l, C_l) are valid feature maps of one image: shapes, types, finite."""
        return (
            [tuple(level.shape) for level in stored]
            == [(self.n_tiles, h, w, c) for c, h, w in self.extractor.level_shapes]
            and {level.dtype for level in stored} in ({self.dtype}, {torch.float32})
            and are_finite(stored)
        )


def _channels_first(stored: Sequence[Tensor]) -> list[Tensor]:
    """Return (n, C, H, W) views of maps (n, H, W, C): the memory format of the backbone's output, so equal rounding."""
    return [level.permute(0, 3, 1, 2) for level in stored]


def _is_note(note: Any) -> bool:
    if not isinstance(note, dict) or not isinstance(note.get("shape"), list):
        return False
    kinds = [type(note.get(name)) for name in ("transparent", "more_frames", "fingerprint")]
    shape = note["shape"]
    return kinds == [bool, bool, str] and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)


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
    weights = [part for name, tensor in state.items() for part in (name, tensor_digest(tensor))]
    code = code_key(network.module) if isinstance(network, HookedModule) else ""
    digest = digest_of(repr(network), repr(getattr(network, "layers", None)), code, *weights).hex()
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
