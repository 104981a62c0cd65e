"""Content digests of tensors, arrays and nested Python values."""

from __future__ import annotations

import functools
import hashlib
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SIZE = 20  # bytes of a digest
_BY_REPR = (bool, int, float, complex, str, bytes, slice, range, type(None), type(Ellipsis))
_BY_STR = (np.dtype, torch.dtype, torch.device, torch.layout, torch.memory_format, PurePath)

Digest = bytes


def digest_of(*parts: bytes | str) -> Digest:
    """Return the digest of a sequence of parts; where one ends and the next begins matters."""
    encoded = [part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts]
    lengths = ",".join(str(len(part)) for part in encoded).encode()
    return hashlib.blake2b(b"".join([lengths, b":", *encoded]), digest_size=_SIZE).digest()


def type_name(value: Any) -> str:
    """Return the module and the qualified name of a value's type."""
    return qualified_name(type(value))


def qualified_name(named: Any) -> str:
    """Return the module and the qualified name of a class or function."""
    return f"{getattr(named, '__module__', None)}.{getattr(named, '__qualname__', getattr(named, '__name__', named))}"


def tensor_digest(tensor: Tensor) -> Digest:
    """Return the digest of a tensor's type, shape and values; strides and device do not matter."""
    dense = tensor.detach().cpu()
    if dense.layout != torch.strided:
        dense = dense.to_dense()
    dense = dense.resolve_conj().resolve_neg().contiguous()
    hashed = hashlib.blake2b(f"{dense.dtype} {tuple(dense.shape)}".encode(), digest_size=_SIZE)
    hashed.update(dense.view(-1).view(torch.uint8).numpy().data)
    return hashed.digest()


def array_digest(array: np.ndarray[Any, Any]) -> Digest:
    """Return the digest of an array's type, shape and values; objects are represented by their ``repr``."""
    if array.dtype.hasobject:
        return digest_of("objects", str(array.shape), repr(array.tolist()))
    if array.dtype.names is not None:  # padding between fields is undefined
        return digest_of(*(part for name in array.dtype.names for part in (name, array_digest(array[name]))))
    hashed = hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode(), digest_size=_SIZE)
    hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hashed.digest()


@functools.lru_cache(4096)
def _text_digest(text: str) -> Digest:
    return digest_of("plain", "str", repr(text))


class Walk:
    """Digests of nested values: equal for equal content, in any process and whether or not objects are shared.

    Parameters
    ----------
    other : callable
        Called with the walk and a value of a type that is not known here, functions and classes among them; returns
        its digest.
    module_state : callable
        Called with a module; returns the attributes that matter.
    """

    def __init__(
        self, other: Callable[[Walk, Any], Digest], module_state: Callable[[nn.Module], Mapping[str, Any]]
    ) -> None:
        self._other, self._module_state = other, module_state
        self._known: dict[int, tuple[Any, Digest]] = {}  # by id; holding the value keeps its id from being reused
        self._open: list[int] = []  # ids of the values being walked, outermost first

    def digest(self, value: Any) -> Digest:
        """Return the digest of a value."""
        if type(value) is str:  # names above all
            return _text_digest(value)
        if isinstance(value, Enum):
            return digest_of("enum", type_name(value), value.name, self.digest(value.value))
        if type(value) in _BY_REPR or isinstance(value, np.generic):
            return digest_of("plain", type(value).__name__, repr(value))
        if isinstance(value, _BY_STR):
            return digest_of("named", type(value).__name__, str(value))
        if id(value) in self._open:
            return digest_of("cycle", str(self._open.index(id(value))))
        known = self._known.get(id(value))
        if known is None:
            self._open.append(id(value))
            try:
                known = value, self._compound(value)
            finally:
                self._open.pop()
            self._known[id(value)] = known
        return known[1]

    def mapping(self, values: Mapping[Any, Any]) -> Digest:
        """Return the digest of a mapping; its order matters."""
        return digest_of("dict", *(part for item in values.items() for part in map(self.digest, item)))

    def attributes(self, values: Mapping[str, Any]) -> Digest:
        """Return the digest of attributes; their order does not matter."""
        return self.mapping({name: values[name] for name in sorted(values)})

    def _compound(self, value: Any) -> Digest:
        if isinstance(value, Tensor):
            try:
                return digest_of("tensor", tensor_digest(value))
            except (RuntimeError, TypeError, NotImplementedError):  # has no data, for example on the meta device
                return digest_of("tensor", type_name(value), str((value.dtype, tuple(value.shape))))
        if isinstance(value, np.ndarray):
            return digest_of("array", array_digest(value))
        if isinstance(value, nn.Module):
            return digest_of("module", type_name(value), self.attributes(self._module_state(value)))
        if type(value) in (dict, OrderedDict, defaultdict):
            return self.mapping(value)
        if type(value) in (list, tuple):
            return digest_of("list" if isinstance(value, list) else "tuple", *map(self.digest, value))
        if type(value) is types.SimpleNamespace:
            return digest_of("namespace", self.attributes(vars(value)))
        if type(value) in (set, frozenset):
            return digest_of("set", *sorted(map(self.digest, value)))
        if type(value) is functools.partial:
            return digest_of("partial", *map(self.digest, (value.func, value.args, value.keywords)))
        if isinstance(value, types.MethodType):
            return digest_of("method", *map(self.digest, (value.__func__, value.__self__)))
        return self._other(self, value)
