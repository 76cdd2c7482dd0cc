"""Numbers of the host as tensors of a device, sent without waiting for the work that the device is still at.

`torch.tensor(values, device=...)` and a plain `.to(device)` wait for all of it: once in a step is once too often.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def uploaded(values: Any, device: torch.device | None, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of plain numbers, or a host's tensor or array, on `device`."""
    made = torch.as_tensor(values, dtype=dtype, device="cpu")
    return made if device is None else made.to(device, non_blocking=True)
