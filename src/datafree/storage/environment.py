"""The environment of a run: versions and hardware."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_NAMED = (
    "datafree",
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "numpy",
    "pillow",
    "safetensors",
)


def environment() -> dict[str, Any]:
    """Versions and hardware, as plain values."""
    return {
        "versions": dict(_versions()),
        "hardware": hardware(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version() -> str:
    """This package's."""
    return _versions()["datafree"]


@cache  # they stay what they are, and the library keeps a listing of the working directory for each look
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _NAMED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def hardware() -> dict[str, Any]:
    """The processor, its threads and any accelerator."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }
