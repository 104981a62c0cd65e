"""Pretrained weights: torchvision's own download and cache, or a state-dict file."""

from __future__ import annotations

import pickle
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from skpbas.errors import WeightsError, WeightsUnavailableError

_NOT_LEARNT = "num_batches_tracked"  # counter of batch norm, not used in evaluation mode


def imagenet_state_dict(name: str, *, progress: bool = False) -> Mapping[str, Tensor]:
    """Return torchvision's IMAGENET1K_V1 weights of a model, from its cache or by download.

    Parameters
    ----------
    name : str
        torchvision's name of the model.
    progress : bool
        Show the download's progress.

    Raises
    ------
    WeightsUnavailableError
        The file is not in the cache and could not be downloaded.
    """
    import torchvision

    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(
            progress=progress, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection, and is kept as the cause
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        file_name = weights.url.rsplit("/", 1)[-1]
        raise WeightsUnavailableError(
            f"the ImageNet weights of {name!r} could not be loaded ({type(error).__name__}: {error}). "
            f"torchvision downloads {weights.url} and keeps it as {cache / file_name}. On a machine without a "
            f"connection, copy that file into {cache}, or set weights='path/to/{file_name}', or use "
            'backbone="embedded", which needs no download'
        ) from error
    return state


def read_state_dict(path: str | Path) -> Mapping[str, Tensor]:
    """Read a state dict from a file of ``torch.save`` or of safetensors; no code in the file is executed.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    WeightsError
        The file does not exist or does not hold a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"weights={str(path)!r}: no such file; expected 'imagenet', the path of a state dict, or None"
        )
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise WeightsError(
            f"weights={str(path)!r} cannot be read as a state dict ({type(error).__name__}: {error}); "
            "write it with torch.save(model.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):  # of a training checkpoint
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise WeightsError(
            f"weights={str(path)!r} holds a {type(state).__name__}, not a state dict of tensors; "
            "write it with torch.save(model.state_dict(), path)"
        )
    return state


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], *, source: str, others: Container[str] | None = None
) -> None:
    """Copy the tensors that a network needs from a state dict, which may hold those of other layers too.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    state : mapping of str to Tensor
        Names as in ``network.state_dict()``; a leading ``module.`` is ignored.
    source : str
        Where the state dict came from, for errors.
    others : container of str, optional
        All that the state dict may hold besides. By default, anything that does not belong to a child of the network.

    Raises
    ------
    WeightsError
        A tensor is missing, has a different shape or holds NaN or infinity, or a layer in use has more tensors in the
        state dict than in the network, which then belong to another network; the error names them.
    """
    prefixed = [name for name in state if name.startswith("module.") and name.removeprefix("module.") in state]
    if prefixed:
        raise WeightsError(
            f"weights {source}: there are both {prefixed[0]!r} and {prefixed[0].removeprefix('module.')!r}; keep one"
        )
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    needed = {k: v for k, v in network.state_dict().items() if not k.endswith(_NOT_LEARNT)}
    for name, tensor in needed.items():
        if name not in state:
            raise WeightsError(f"weights {source}: the tensor {name!r}, of shape {tuple(tensor.shape)}, is missing")
        given = state[name]
        if given.layout != torch.strided or given.is_meta or given.is_quantized or not given.is_floating_point():
            raise WeightsError(
                f"weights {source}: the tensor {name!r} is {given.dtype}, {given.layout} on {given.device}; expected "
                "dense floating-point numbers"
            )
        if state[name].shape != tensor.shape:
            raise WeightsError(
                f"weights {source}: the tensor {name!r} has the shape {tuple(state[name].shape)}, "
                f"the backbone needs {tuple(tensor.shape)}"
            )
    in_use = tuple(f"{name}." for name, _ in network.named_children())
    unknown = [n for n in state if n not in needed and not n.endswith(_NOT_LEARNT)]
    surplus = [n for n in unknown if (n.startswith(in_use) if others is None else n not in others)]
    if surplus:
        shown = ", ".join(map(repr, surplus[:4])) + (", ..." if len(surplus) > 4 else "")
        raise WeightsError(
            f"weights {source}: the layers in use have {len(surplus)} tensors that the backbone lacks ({shown}), so "
            "they belong to another network: give the weights of this one, or the backbone that they belong to"
        )
    weights = {name: state[name].to(tensor.dtype) for name, tensor in needed.items()}
    check_finite(weights, f"weights {source}")
    network.load_state_dict(weights, strict=False)


def check_finite(tensors: Mapping[str, Tensor], source: str, *, masks: Container[str] = ()) -> None:
    """Check that weights are numbers.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    source : str
        Where they come from, for errors.
    masks : container of str
        Names of tensors that may hold infinity.

    Raises
    ------
    WeightsError
        A tensor holds NaN or infinity; the error names it.
    """
    for name, tensor in tensors.items():
        bad = tensor.isnan() if name in masks else ~tensor.isfinite()
        if bad.any():
            raise WeightsError(
                f"{source}: {int(bad.sum())} of {tensor.numel()} values of the tensor {name!r} are NaN or infinite, as "
                "in a damaged file or after a training that diverged; give other weights"
            )
