"""Format number, versions and content digest of stored estimators."""

from __future__ import annotations

import platform
import types
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.utils.hooks import RemovableHandle

from skpbas._features.digests import Digest, Walk, digest_of, qualified_name, type_name
from skpbas.core.coreset import Coreset
from skpbas.core.patch_scores import PatchScorer
from skpbas.errors import FileFormatError

FORMAT = 3
"""Incremented when an attribute of a pickled object is added, removed or changes its meaning."""

SEAL = "_stored_as"
"""Key of the seal in a state; not an attribute of the estimator."""

_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, np.ufunc)
_PICKLING = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__")
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # most of them are empty
_SET_WHEN_OPENED = {"device_"}
_BY_TYPE = ("memory", "random_state", "_skl", "_callback", "_parent")  # of no effect on predictions
_IRRELEVANT_TO_SCORES = {"device", "device_", "memory", "n_jobs", "verbose", "random_state"}


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of an estimator with its seal: format, versions and digest.

    Parameters
    ----------
    state : dict
        Attributes by name.
    """
    content, of_modules = _content(state)
    seal = {"format": FORMAT, "versions": dict(versions()), "modules": of_modules}
    return {**state, SEAL: {**seal, "digest": _digest(content, seal)}}


def opened(state: Any, estimator: object) -> dict[str, Any]:
    """Return a stored state without its seal.

    Parameters
    ----------
    state : dict
        As read from a pickle.
    estimator : object
        The estimator that the state belongs to.

    Raises
    ------
    FileFormatError
        The format differs, or the content does not match the digest.
    """
    name, here = type(estimator).__name__, f"this is skpbas {versions()['skpbas']} (format {FORMAT})"
    if not isinstance(state, dict):
        raise _damaged(name, f"its state is {type(state).__name__}, not dict")
    seal = state.get(SEAL)
    if seal is None:
        raise FileFormatError(
            f"this {name} was written by a skpbas whose files have no format number, and {here}: fit again, or open it "
            "with the version that wrote it"
        )
    try:
        written, by = seal["format"], seal["versions"]["skpbas"]
    except Exception as error:
        raise _damaged(name, f"{type(error).__name__}: {error}") from error
    if written != FORMAT:
        raise FileFormatError(
            f"this {name} was written by skpbas {by} (format {written}), and {here}: fit again, or open it with "
            f"skpbas {by}"
        )
    state = {key: value for key, value in state.items() if key != SEAL}
    try:
        content, of_modules = _content(state)
        sound = seal["digest"] == _digest(content, {key: value for key, value in seal.items() if key != "digest"})
        sound = sound and all(map(_agree, seal["modules"], of_modules))
    except Exception as error:  # a damaged state may raise anything
        raise _damaged(name, f"{type(error).__name__}: {error}") from error
    if not sound:
        wrote = seal["versions"] if isinstance(seal["versions"], dict) else {}
        others = [f"{what} {wrote.get(what)}" for what, version in versions().items() if wrote.get(what) != version]
        but = f". If it is sound, it needs the versions that wrote it: {', '.join(others)}" if others else ""
        raise _damaged(name, "its content does not match its digest", but)
    return state


def scores_digest(estimator: Any) -> str:
    """Return a digest of what an estimator's scores depend on; equal in any process and after pickling.

    Parameters
    ----------
    estimator : object
        A detector of this package or another estimator.
    """
    return Walk(_by_content, lambda module: _module_state(module, [])).digest(estimator).hex()


@cache
def versions() -> dict[str, str]:
    """Return the versions of this package, of Python, and of what numbers depend on."""
    from skpbas import __version__

    return {
        "skpbas": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
    }


def _content(state: Mapping[str, Any]) -> tuple[Digest, list[dict[str, str]]]:
    """Return the digest of a state, and the tensor digests of each module with pickling methods."""
    themselves: list[nn.Module] = []
    walk = Walk(_by_content, lambda module: _module_state(module, themselves))
    kept = {name: value for name, value in state.items() if name not in _SET_WHEN_OPENED}
    digest = walk.attributes({k: type_name(v) if k.startswith(_BY_TYPE) else v for k, v in kept.items()})
    return digest, [{k: walk.digest(v).hex() for k, v in module.state_dict().items()} for module in themselves]


def _agree(written: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Return whether tensors that are in both have equal digests."""
    return all(found[name] == written[name] for name in written if name in found)


def _digest(content: Digest, seal: Mapping[str, Any]) -> str:
    return digest_of(content, Walk(_by_content, vars).attributes(seal)).hex()


def _damaged(name: str, how: str, but: str = "") -> FileFormatError:
    return FileFormatError(
        f"the stored {name} is damaged ({how}): copy the file again from its source, or fit again{but}"
    )


def _module_state(module: nn.Module, themselves: list[nn.Module]) -> Mapping[str, Any]:
    """Return the stored attributes of a module, without those that are set when it is opened.

    A module with pickling methods is added to ``themselves``: its attributes may differ once it is opened.
    """
    kind = type(module)
    if _is_ours(kind):
        state = dict(module.__getstate__())
        if isinstance(module, PatchScorer):
            state.pop("_precision", None)  # depends on the hardware that it is opened on
        elif isinstance(module, Coreset):
            state.pop("precision", None)
    elif stores_itself(kind):
        themselves.append(module)
        return {}
    else:
        state = vars(module)
    # hooks without their numbers, which count all hooks of the process
    return {
        name: list(value.values()) if name.endswith("_hooks") and isinstance(value, dict) else value
        for name, value in state.items()
        if value or name not in _OF_EVERY_MODULE
    }


def stores_itself(kind: type[nn.Module]) -> bool:
    """Return whether a class of modules has pickling methods of its own, which may change its state."""
    own = [name for name in _PICKLING if getattr(kind, name, None) is not getattr(nn.Module, name, None)]
    return bool(own) and (own != ["__setstate__"] or kind.__module__.split(".")[0] != "torch")


def _by_content(walk: Walk, value: Any) -> Digest:
    """Return the digest of an estimator, a function or class (by name), or any other object (as pickled)."""
    if isinstance(value, BaseEstimator):
        names = [name for name in vars(value) if name not in _IRRELEVANT_TO_SCORES]
        if _is_ours(type(value)):
            names = [name for name in names if not name.startswith("_") or name == "_reading"]
        attributes = {name: getattr(value, name) for name in names}
        return digest_of("estimator", type_name(value), walk.attributes(attributes))
    if isinstance(value, _NAMED):
        return digest_of("qualified", qualified_name(value))
    if isinstance(value, RemovableHandle):  # has the number of a hook
        return digest_of("handle")
    try:
        reduced = value.__reduce_ex__(4)  # the content of a pickle
    except Exception:  # noqa: BLE001 - not picklable: type only
        return digest_of("object", type_name(value))
    if isinstance(reduced, str):
        return digest_of("object", type_name(value), reduced)
    parts = [part if i < 3 or part is None else list(part) for i, part in enumerate(reduced)]  # 3, 4: iterators
    return digest_of("object", type_name(value), walk.digest(parts))


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "skpbas"
