"""The channels of a network, followed through one forward pass: which axis of which tensor carries which variables.

Every operation of the pass is seen at ATen's level, whatever Python made it, and `rules` says what becomes of the
labels of what it takes. torch-pruning 1.6.1 (MIT, 70 kB, works with torch 2.14) was tried first: it prunes plain
ResNets, U-Nets, MobileNets and YOLOv3 well, but takes the channels of a zero-padded shortcut (`datafree/resnet`) for
others than they are, and fails on channels that are shuffled (FastestDet), joined with the pooled image (ESPNet), or
in parameters outside of layers (transformers). It also cuts a teacher rather than filling a student's given shapes.

All tensors of the pass are kept alive until it ends, since `channel_labels` knows them by their place in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from datafree.networks.normalized import bare
from datafree.networks.pruning.channel_labels import ChannelLabels, Followed
from datafree.networks.pruning.rules import see
from datafree.ops import modes


def follow(network: nn.Module, images: Tensor) -> Followed:
    """Follow the channels of `network` on `images` (1, 3, H, W) in [0, 1]; names are those of the bare network."""
    carried = ChannelLabels(bare(network))
    ids = carried.channels.fresh(images.shape[1])
    carried.label(images, ids.view(1, -1, 1, 1).expand(images.shape))
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # which would hide the layers of nn.TransformerEncoder
        with modes.frozen(network), torch.no_grad(), Follower(carried):
            network(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return carried.result()


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a forward pass, and has `rules` label what it answers."""

    def __init__(self, carried: ChannelLabels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.carried = carried
        self._alive: list[object] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        self._alive.append((args, answer))
        see(self.carried, func, args, kwargs or {}, answer)
        return answer
