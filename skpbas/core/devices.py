"""Where the detector computes, with what precision, and how many images at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_GPU_BATCH = 32


@contextmanager
def callers_modes_left(*, grad: bool) -> Iterator[None]:
    """Compute as if the caller were in none of torch's modes that belong to a thread: inference mode and autocast.

    Its default dtype and default device are for all of the process, so nothing here changes them: whatever the package
    makes names its own.

    Parameters
    ----------
    grad : bool
        Whether gradients are recorded.
    """
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
        for device_type in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device_type):
                modes.enter_context(torch.autocast(device_type, enabled=False))
        modes.enter_context(torch.set_grad_enabled(grad))
        yield


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that ``device`` stands for; "auto": cuda, mps or cpu, the first available."""
    if device == "auto":
        return next(d for d in map(torch.device, ("cuda", "mps", "cpu")) if is_available(d))
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: choose 'auto', 'cpu', 'cuda', 'cuda:0', ... or 'mps'") from error
    if not is_available(resolved):
        raise ValueError(f"device={device!r} is not available on this machine; device='auto' selects one that is")
    return resolved


def is_available(device: torch.device) -> bool:
    """Return whether this machine has the device."""
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def inference_batch(device: torch.device) -> int:
    """Return the images per forward pass: on a CPU one, which is as fast, and whose score depends on no other."""
    return 1 if device.type == "cpu" else _GPU_BATCH


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware computes matrix products faster in bfloat16 than in float32.

    A processor has a matrix unit for it (AMX) or is AMD's with AVX-512 BF16. Intel's has these instructions too, but
    there they take longer than those of float32, and a virtual machine may hide the matrix unit.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        of_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
        return bool(capabilities.get("amx_bf16") or (of_amd and capabilities.get("avx512_bf16")))
    return False


def discriminator_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic of the discriminator: bfloat16 if asked for, or with "auto" where it is faster."""
    if precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device)):
        return torch.bfloat16
    return torch.float32
