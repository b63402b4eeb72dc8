"""What numbers were measured with: commit, versions, hardware, memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from harness import dist

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pycocotools")
_CPU_INFO = Path("/proc/cpuinfo")
_ROOT = Path(__file__).parents[1]


def peak_memory_bytes() -> int:
    """Most memory of this process so far: allocated on its GPU, or resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def hardware() -> str:
    """Name of this process's GPU, or the CPU's model and architecture."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_cpu_model()} {platform.machine()}".strip()


def _cpu_model() -> str:
    """As Linux calls it; "" elsewhere."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "")


def job_id() -> str | None:
    """SLURM's id of the job that this process belongs to, as squeue writes it; None outside."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return os.environ.get("SLURM_JOB_ID")


def environment() -> dict[str, Any]:
    """What the numbers were measured with: commit, versions, hardware, processes, job, command."""
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "versions": versions,
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": dist.world(),
        "host": platform.node(),
        "job": job_id(),
        "command": shlex.join(sys.argv),
        "log": _log(),
    }


def _log() -> str | None:
    """The file that this process's stderr goes to; None for a terminal or a pipe."""
    path = Path("/proc/self/fd/2").resolve()
    return str(path) if path.is_file() else None


def _git(*arguments: str) -> str | None:
    """Output of git in the project's folder; None without git or outside of a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
