"""The one place that knows what a network wants its images scaled to, and the one form of its answers.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from datafree import modes
from datafree.errors import NetworkError


class Normalized(nn.Module):
    """A network that takes images in [0, 1] and answers one float32 tensor.

    `network` is the bare network: its state_dict is what is loaded and shipped (`mean` and `std` are in no
    state_dict). `mean` and `std` are those of RGB images in [0, 1], one a channel; a network of one channel gets the
    average of the three, so that colour, which it knows nothing of, cannot reach it. `dtype` is the type of
    the forward pass, under autocast; the answer is float32 whatever it is.
    Raises NetworkError for a mean or std that cannot normalise.
    """

    mean: Tensor  # (1, 3, 1, 1)
    std: Tensor  # (1, 3, 1, 1)

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        dtype: torch.dtype = torch.float32,
        channels: int = 3,
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise NetworkError(f"{name} is {tuple(values)}: give three finite numbers, for R, G and B")
        if min(std) <= 0:
            raise NetworkError(f"std is {tuple(std)}: give three numbers above 0 (1, 1, 1 leaves images as they are)")
        self.network = network
        self.dtype = dtype
        self.channels = channels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the network's outputs, float32. Raises as `only_tensor`."""
        x = (images - self.mean) / self.std
        if self.channels == 1:
            x = x.mean(1, keepdim=True)  # (B, 1, H, W)
        if self.dtype == torch.float32:  # leaves a caller's own autocast as it is
            return only_tensor(self.network(x)).float()
        with modes.autocast(images.device, self.dtype):
            outputs = self.network(x)
        return only_tensor(outputs).float()


def bare(network: nn.Module) -> nn.Module:
    """The network inside a `Normalized`, whose layers users know by name; any other network itself."""
    return network.network if isinstance(network, Normalized) else network


def only_tensor(outputs: object) -> Tensor:
    """The tensor in a network's answer: itself, or "out" of torchvision's {"out": ..., "aux": ...}.

    Raises NetworkError for any other answer, naming what it is.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        out = outputs.get("out")
        if isinstance(out, Tensor):
            return out
        found = f"a dict with the keys {sorted(map(str, outputs))}"
    elif isinstance(outputs, (tuple, list)):
        parts = ", ".join(type(part).__name__ for part in outputs[:4]) + (", ..." if len(outputs) > 4 else "")
        found = f"a {type(outputs).__name__} of {len(outputs)} ({parts})"
    else:
        found = f"a {type(outputs).__name__}"
    raise NetworkError(
        f"the network answers {found}: one tensor, or a dict with a tensor under 'out', is needed; "
        "wrap the network in a module that returns just its logits and name it as 'package.module:callable'"
    )
