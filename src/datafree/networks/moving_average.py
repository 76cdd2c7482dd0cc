"""The exponential moving average of a network's weights (EMA): of a student's that is kept, of a generator's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def take_in(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * weights, in place; two `state_dict`s of one network.

    BatchNorm's running statistics are averaged too; whole numbers, such as its counts, are the last ones.
    """
    share = 1 - momentum
    for name, value in weights.items():
        if value.is_floating_point():
            average[name].lerp_(value, share)
        else:
            average[name].copy_(value)
