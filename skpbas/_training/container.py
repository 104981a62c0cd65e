"""One file for tensors and JSON: safetensors with a checksum, of which nothing is taken on trust.

The file starts with the length of its header (8 bytes, little-endian), and the header with the format number and the
checksum, always at the same places: both are known before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from skpbas.errors import FileFormatError

FORMAT = 1
"""Incremented when what is stored changes its meaning."""

LARGEST_HEADER = 2**20
"""Bytes of a header; that of a detector has a few thousand."""

_MAGIC = b'{"__metadata__":{"format":"skpbas '
_START = _MAGIC + f'{FORMAT}","sha256":"'.encode()
_DIGEST = slice(8 + len(_START), 8 + len(_START) + 64)
_NO_DIGEST = b"0" * 64
_MAX_DIMENSIONS = 8
_DTYPES = {"F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_DAMAGED = "copy the file again from its source, or fit and save again"


def encoded(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a file; equal for equal arguments.

    Parameters
    ----------
    document : dict
        What JSON can hold.
    tensors : dict of str to Tensor
        float64, float32, int64 or uint8, on any device.
    """
    metadata = {"format": f"skpbas {FORMAT}", "sha256": _NO_DIGEST.decode(), "detector": _as_json(document)}
    header: dict[str, Any] = {"__metadata__": metadata}
    parts: list[bytes] = []
    position = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # so that all are aligned
        tensor = tensors[name]
        parts.append(tensor_bytes(tensor))
        end = position + len(parts[-1])
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = _padded(header)
    if len(text) > LARGEST_HEADER:
        raise ValueError(f"the parameters and the names of the tensors take {len(text)} bytes, over {LARGEST_HEADER}")
    content = bytearray(b"".join([len(text).to_bytes(8, "little"), text, *parts]))
    content[_DIGEST] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the values of a tensor in row-major order, little-endian."""
    dense = tensor.detach().cpu().contiguous()
    return dense.view(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the document and the tensors of a file that :func:`encoded` made; no code is executed.

    Raises
    ------
    FileFormatError
        Another format, damage, or another kind of file; without the path.
    OSError
        The file cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileFormatError("not a regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = bytearray(file.read(_DIGEST.stop))
        header_size = _checked_start(content, size)
        content += file.read(size - len(content))
    if len(content) != size:
        raise FileFormatError(f"it changed while it was read: {_DAMAGED}")
    return _decoded(content, header_size)


def _checked_start(start: bytearray, size: int) -> int:
    """Return the size of the header, whose first bytes are given: length, format and digest."""
    magic = bytes(start[8 : 8 + len(_MAGIC)])
    if magic != _MAGIC[: len(magic)] or not magic:
        hint = ": if joblib.dump or pickle wrote it, they open it, and run what code it holds" if len(start) > 8 else ""
        raise FileFormatError(f"not a detector that PBASDetector.save wrote, or damaged at its start{hint}")
    number, quote, _ = bytes(start[8 + len(_MAGIC) : 8 + len(_MAGIC) + 20]).partition(b'"')
    if quote and number.isdigit() and number != str(FORMAT).encode():
        from skpbas import __version__

        raise FileFormatError(
            f"it has format {number.decode()}, and this is skpbas {__version__}, which reads format {FORMAT}: open it "
            "with the version that wrote it, or fit and save again"
        )
    if len(start) < _DIGEST.stop or not start[8:].startswith(_START):
        raise FileFormatError(f"damaged or cut off at its start: {_DAMAGED}")
    header_size = int.from_bytes(start[:8], "little")
    if not _DIGEST.stop - 8 <= header_size <= min(LARGEST_HEADER, size - 8):
        raise FileFormatError(f"its header claims {header_size:,} bytes, in a file of {size:,}: {_DAMAGED}")
    return header_size


def _decoded(content: bytearray, header_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    digest = bytes(content[_DIGEST])
    content[_DIGEST] = _NO_DIGEST
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise FileFormatError(f"its content does not match its checksum: {_DAMAGED}")
    text = bytes(content[8 : 8 + header_size])
    header = _parsed(text, "header")
    if _padded(header) != text:
        raise FileFormatError("its header is not written as this format writes it")
    metadata = header.pop("__metadata__")  # its start has been checked
    if set(metadata) != {"format", "sha256", "detector"} or not isinstance(metadata["detector"], str):
        raise FileFormatError("its metadata are not those of this format")
    document = _parsed(metadata["detector"], "description of the detector")
    return document, _tensors(header, torch.frombuffer(content, dtype=torch.uint8)[8 + header_size :])


def _tensors(entries: Mapping[str, Any], data: Tensor) -> dict[str, Tensor]:
    """Return the tensors that the entries of a header describe, which must take all of the data, in their order."""
    position = 0
    tensors: dict[str, Tensor] = {}
    for name, entry in entries.items():
        which = f"the tensor {name[:60]!r}"
        if not isinstance(entry, dict) or list(entry) != ["dtype", "shape", "data_offsets"]:
            raise FileFormatError(f"the entry of {which} is not one of this format")
        shape = entry["shape"]
        dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            raise FileFormatError(f"{which} has a type that this format does not know")
        if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(type(n) is int for n in shape):
            raise FileFormatError(f"{which} has no valid shape")
        if any(not 0 <= n <= len(data) for n in shape):
            raise FileFormatError(f"{which} has a shape that does not fit into a file of {len(data):,} bytes")
        end = position + math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [position, end] or end > len(data):
            raise FileFormatError(f"{which} is not where those before it end, or not of its shape's size")
        tensors[name] = data[position:end].clone().view(dtype).view(shape)
        position = end
    if position != len(data):
        raise FileFormatError(f"there are {len(data) - position:,} bytes behind the tensors")
    return tensors


def _parsed(text: str | bytes, name: str) -> dict[str, Any]:
    """Return a JSON object; raises on anything else, on duplicate names, and on numbers that are not finite."""
    try:
        parsed = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
        again = _as_json(parsed)  # refuses infinite numbers
    except FileFormatError as error:
        raise FileFormatError(f"its {name}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"its {name} is not valid JSON ({type(error).__name__})") from error
    if not isinstance(parsed, dict) or not again:
        raise FileFormatError(f"its {name} is not a JSON object")
    return parsed


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise FileFormatError(f"the name {name[:60]!r} occurs twice")
        found[name] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise FileFormatError(f"{name} is not a number")


def _as_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _padded(header: Mapping[str, Any]) -> bytes:
    text = _as_json(header).encode()
    return text + b" " * (-len(text) % 8)
