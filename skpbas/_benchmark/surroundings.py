"""What computed: versions, machine and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import skpbas
from skpbas.core.devices import resolve_device

_PACKAGES = ("torch", "torchvision", "scikit-learn", "numpy", "scipy", "pillow", "skorch")


def surroundings(device: str) -> dict[str, str]:
    """Return versions, machine and, in a checkout, the commit; nothing that names a machine or its user."""
    facts = {"skpbas": skpbas.__version__, "Python": platform.python_version()}
    if (commit := _commit(Path(skpbas.__file__).parents[1])) is not None:
        facts["commit"] = commit
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    chosen = resolve_device(device)
    facts["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    facts["processor"] = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    facts["device"] = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit(folder: Path) -> str | None:
    """Return the commit of a checkout; None for an installed package, even inside the repository of another project."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}, with uncommitted changes" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
