"""Where the detector computes, and in what portions."""

from __future__ import annotations

import torch

_GPU_BATCH = 32


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that ``device`` stands for; "auto": cuda, mps or cpu, the first there is."""
    if device == "auto":
        return next(d for d in map(torch.device, ("cuda", "mps", "cpu")) if is_available(d))
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: choose 'auto', 'cpu', 'cuda', 'cuda:0', ... or 'mps'") from error
    if not is_available(resolved):
        raise ValueError(f"device={device!r} is not available on this machine; device='auto' takes what there is")
    return resolved


def is_available(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def inference_batch(device: torch.device) -> int:
    """Images a forward pass: a CPU gains nothing from more than one, and one always gives the same score."""
    return 1 if device.type == "cpu" else _GPU_BATCH
