"""Numbers of the host as tensors of a device, sent without waiting for the work that the device is still at.

`torch.tensor(values, device=...)` and a plain `.to(device)` wait for all of it: once in a step is once too often. So
does CUDA's copy of more than 64 KB, whatever it is told, unless they lie in pinned memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LARGE = 1 << 16  # bytes: up to here CUDA takes them over at once


def uploaded(values: Any, device: torch.device | None, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of plain numbers, or a host's tensor or array, on `device`."""
    made = torch.as_tensor(values, dtype=dtype, device="cpu")
    if device is None:
        return made
    if device.type == "cuda" and made.nbytes > _LARGE:
        made = made.pin_memory()
    return made.to(device, non_blocking=True)
