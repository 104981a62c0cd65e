"""Keys of the code and attributes of modules, for entries of ``memory``.

State dict and ``repr`` identify networks of torch's own layers, but not modules that differ in a plain attribute or in
their ``forward``.
"""

from __future__ import annotations

import functools
import logging
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.fx import GraphModule

from skpbas._features.digests import Digest, Walk, digest_of, qualified_name, type_name

_KNOWN_PACKAGES = {"torch", "torchvision", "skpbas", "numpy", *sys.stdlib_module_names}
"""Packages whose functions and classes are identified by name; those of others by their code."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_THAT_COUNT = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_hooks")


_OF_GRAPHS = {"_graph", "_code", "_tracer_cls", "_tracer_extras", "_graphmodule_cls_name", "meta", "class"}


class _UnknownError(TypeError):
    """No key can be computed for a value."""


def code_key(module: nn.Module) -> str:
    """Return a key of everything but the weights that the outputs of a module depend on.

    It covers the module and its submodules: their classes, attributes and hooks, and the code of classes that are not
    torch's, with the functions and constants that it refers to. An attribute ``memory_key`` of the module replaces it.

    Raises
    ------
    ValueError
        No key can be computed; the message names the attribute and the remedy.
    """
    own = getattr(module, "memory_key", None)
    if own is not None:
        if not isinstance(own, str) or not own:
            raise ValueError(f"backbone.memory_key={own!r}: must be a str that is not empty")
        return digest_of("memory_key", type_name(module), own).hex()
    code = _Code()
    walk = Walk(code.other, _attributes)
    parts: list[Digest] = []
    for name, part in module.named_modules(remove_duplicate=False):
        path = f"submodule {name!r} ({type(part).__name__})" if name else type(part).__name__
        try:
            parts += [digest_of(name), code.of_class(walk, type(part))]
            if isinstance(part, GraphModule):
                called = [node.target for node in part.graph.nodes if node.op == "call_function"]
                parts += [digest_of(part.code), walk.digest(called)]
            for attribute, value in sorted(_attributes(part).items()):
                if attribute not in ("_parameters", "_modules") and not (
                    isinstance(part, GraphModule) and attribute in _OF_GRAPHS
                ):
                    try:
                        parts += [digest_of(attribute), walk.digest(value)]
                    except _UnknownError as error:
                        raise _UnknownError(f"its attribute {attribute!r} holds {error}") from None
        except _UnknownError as error:
            raise ValueError(
                f"memory= needs a key for the computation of the backbone, and cannot make one for {path}: {error}. "
                "Set an attribute memory_key of the backbone, a str that you change whenever its computation changes, "
                "or use memory=None"
            ) from None
    return digest_of(*parts).hex()


def _attributes(module: nn.Module) -> Mapping[str, Any]:
    """Return the attributes that may change a module's results; hooks without their ids, which differ by process."""
    state = {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}
    state["class"] = type(module)
    for name in _THAT_COUNT:
        held = getattr(module, name)
        if held:
            state[name] = list(held.values()) if name.endswith("hooks") else dict(held)
    return state


class _Code:
    """Digests of functions, classes and objects, by their code and attributes."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._classes: dict[type, Digest] = {}

    def other(self, walk: Walk, value: Any) -> Digest:
        """Return the digest of a value of a type that :class:`Walk` does not handle."""
        if isinstance(value, (types.BuiltinFunctionType, np.ufunc, logging.Logger)):
            return digest_of("named", qualified_name(value))
        if isinstance(value, (classmethod, staticmethod)):
            return walk.digest(value.__func__)
        if isinstance(value, property):
            return digest_of("property", walk.digest([value.fget, value.fset]))
        if isinstance(value, functools.cached_property):
            return walk.digest(value.func)
        if isinstance(value, types.FunctionType):
            return self._function(walk, value)
        if isinstance(value, type):
            return self.of_class(walk, value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if type(value).__module__.split(".")[0] == "skpbas":  # hooks of this package
            return digest_of("ours", type_name(value))
        if _is_known(value):
            return digest_of("named", qualified_name(value))
        if isinstance(value, functools._lru_cache_wrapper):
            return walk.digest(value.__wrapped__)
        attributes = getattr(value, "__dict__", None)
        if _is_plain(type(value)) and isinstance(attributes, dict):
            return digest_of("object", self.of_class(walk, type(value)), walk.attributes(attributes))
        raise _UnknownError(f"a {type_name(value)}")

    def of_class(self, walk: Walk, kind: type) -> Digest:
        """Return the digest of a class: its name, and the code of bases outside the known packages."""
        if kind not in self._classes:
            self._classes[kind] = digest_of("open", qualified_name(kind))  # for methods that refer to their class
            parts = [digest_of("class", qualified_name(kind))]
            for base in kind.__mro__:
                if _is_known(base):
                    parts.append(digest_of(qualified_name(base)))
                    continue
                for name, member in sorted(vars(base).items()):
                    if name not in _NO_CODE and not name.startswith("__dataclass_"):
                        parts += [digest_of(name), walk.digest(member)]
            self._classes[kind] = digest_of(*parts)
        return self._classes[kind]

    def _function(self, walk: Walk, function: types.FunctionType) -> Digest:
        if _is_known(function):
            return digest_of("function", qualified_name(function))
        if id(function) in self._open:
            return digest_of("recursion", qualified_name(function))
        self._open.add(id(function))
        try:
            closure = [_content(cell) for cell in function.__closure__ or ()]
            held = [function.__defaults__, function.__kwdefaults__, closure, getattr(function, "__wrapped__", None)]
            names = sorted(name for name in _global_names(function.__code__) if name in function.__globals__)
            parts = [_code_digest(function.__code__), *map(walk.digest, held)]
            for name in names:
                try:
                    parts += [digest_of(name), walk.digest(function.__globals__[name])]
                except _UnknownError as error:
                    raise _UnknownError(f"{error}, the global {name!r} of {qualified_name(function)}") from None
            return digest_of("function", *parts)
        finally:
            self._open.discard(id(function))

    def _module(self, module: types.ModuleType) -> Digest:
        """Return the digest of an imported module of a known package: its name."""
        if module.__name__.split(".")[0] in _KNOWN_PACKAGES:
            return digest_of("package", module.__name__)
        raise _UnknownError(f"the module {module.__name__}, whose functions and values may change")


_HEAP_TYPE = 1 << 9
_NO_CODE = {
    "__module__",
    "__dict__",
    "__weakref__",
    "__doc__",
    "__annotations__",
    "__qualname__",
    "__firstlineno__",
} | {
    "__static_attributes__",
    "__abstractmethods__",
    "_abc_impl",
    "__orig_bases__",
    "__parameters__",
    "__slotnames__",
}


def _is_known(value: Any) -> bool:
    """Return whether a class or function belongs to a known package."""
    named = value.__globals__.get("__name__") if isinstance(value, types.FunctionType) else None
    package = str(named or getattr(value, "__module__", None)).split(".")[0]
    if package == "builtins":  # exec() in a namespace without __name__ uses this name, too
        return not isinstance(value, types.FunctionType) and not getattr(value, "__flags__", 0) & _HEAP_TYPE
    return hasattr(value, "__qualname__") and package in _KNOWN_PACKAGES


def _is_plain(kind: type) -> bool:
    """Return whether instances keep their whole state in ``__dict__``."""
    return all(
        base is object or (base.__flags__ & _HEAP_TYPE and not vars(base).get("__slots__")) for base in kind.__mro__
    )


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _global_names(code: types.CodeType) -> set[str]:
    """Return the global and attribute names in code and in the functions within it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _code_digest(code: types.CodeType) -> Digest:
    """Return the digest of bytecode, without file names and line numbers."""
    parts: list[bytes | str] = [code.co_code, repr(code.co_names), repr(code.co_varnames), repr(code.co_freevars)]
    for constant in code.co_consts:
        parts.append(_code_digest(constant) if isinstance(constant, types.CodeType) else _constant(constant))
    return digest_of(*parts)


def _constant(constant: Any) -> str:
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
