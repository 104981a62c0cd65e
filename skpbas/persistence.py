"""Opening of saved detectors: files without code, of which everything is checked."""

from __future__ import annotations

import inspect
from os import PathLike
from typing import Any

import torch
from torch import nn

from skpbas._training.container import read
from skpbas._training.document import check_document, check_parameters, parameters_from
from skpbas._training.restoring import Tensors, extractor_from, fitted_from
from skpbas.core.devices import callers_modes_left, resolve_device
from skpbas.errors import FileFormatError, SkpbasError, WeightsError
from skpbas.estimator import PBASDetector

__all__ = ["load"]


def load(
    path: str | PathLike[str], *, device: str | torch.device = "auto", backbone: nn.Module | None = None
) -> PBASDetector:
    """Open a detector that :meth:`PBASDetector.save` wrote; nothing in the file is executed.

    Its predictions are equal to the last bit on the machine that saved it, with the same number of threads, and equal
    but for rounding elsewhere. It recognizes training images, and can be saved, pickled, cloned and fitted again.

    Parameters
    ----------
    path : str or Path
    device : "auto", str or torch.device, default="auto"
        Where the detector computes, wherever it was fitted; "auto": cuda, mps or cpu, the first available.
    backbone : nn.Module or None, default=None
        The module that the detector was fitted with, if ``backbone`` was one. Its tensors are compared with a digest.

    Returns
    -------
    PBASDetector
        Fitted. Its parameters are those of the saved one, sequences as tuples, but for ``device``, and ``memory``,
        ``n_jobs`` and ``verbose``, which have their defaults; a ``random_state`` that was no integer is None.

    Raises
    ------
    FileFormatError
        The file is damaged, of another format, or something else; the message names it and says what is wrong.
    WeightsError
        The weights that are not in the file are not those that the detector was fitted with.
    WeightsUnavailableError
        torchvision's or timm's weights are neither cached nor downloadable.
    ImportError
        The detector needs timm, which is not installed.
    ValueError
        ``backbone`` is missing, or given for a detector that has its own; or there is no such device.
    OSError
        The file cannot be read.
    """
    on = resolve_device(device)
    try:
        with callers_modes_left(grad=True):
            return _opened(path, device, on, backbone)
    except (FileFormatError, WeightsError) as error:
        raise type(error)(f"{path}: {error}") from error


def _opened(
    path: str | PathLike[str], device: str | torch.device, on: torch.device, backbone: nn.Module | None
) -> PBASDetector:
    document, of_file = read(path)
    check_document(document)
    parameters, tensors = parameters_from(document, set(inspect.signature(PBASDetector).parameters)), Tensors(of_file)
    if document["network"]["backbone"] == "module":
        if not isinstance(backbone, nn.Module):
            raise ValueError(
                f"{path} is a detector whose backbone is a module, which is not in the file: give the module that it "
                "was fitted with, as load(path, backbone=module)"
            )
    elif backbone is not None:
        raise ValueError(f"{path} is a detector with the backbone {document['network']['backbone']!r}: give no other")
    if parameters["backbone"] is None:
        parameters["backbone"] = backbone
    detector = PBASDetector(**parameters, device=device)
    try:
        check_parameters(detector)
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"a parameter is not valid: {error}") from error
    try:
        extractor = extractor_from(document["network"], tensors, backbone)
        fitted: dict[str, Any] = fitted_from(document, tensors, extractor, on)
    except (SkpbasError, OSError, ImportError):
        raise
    except Exception as error:
        if backbone is not None:  # somebody's module may raise anything
            raise
        raise FileFormatError(f"no detector can be made of it ({type(error).__name__}: {error})") from error
    for name, value in fitted.items():
        setattr(detector, name, value)
    return detector
