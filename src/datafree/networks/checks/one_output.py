"""Networks of one output: a logit or a sigmoid that says yes, as of two classes.

B images, h x w places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.networks.normalized import Normalized, bare
from datafree.ops import modes


@torch.no_grad()
def settle_one_output(network: Normalized, images: Tensor) -> str:
    """Have a network that answers (B, 1) or (B, 1, h, w) answer two classes, no and yes; a line that says so.

    "" for any other network, which stays as it is. `images` (B, 3, H, W) are any that it takes.
    """
    layers = [module for module in bare(network).modules() if isinstance(module, nn.Sigmoid)]
    squashed: list[Tensor] = []
    last: list[object] = []
    handles = [layer.register_forward_hook(lambda module, given, answer: squashed.append(answer)) for layer in layers]
    handles.append(network.network.register_forward_hook(lambda module, given, answer: last.append(answer)))
    try:
        with modes.frozen(network):
            outputs = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(outputs, Tensor) or outputs.ndim not in (2, 4) or outputs.shape[1] != 1:
        return ""
    network.one_output = "probability" if any(answer is last[0] for answer in squashed) else "logit"
    what = "a sigmoid" if network.one_output == "probability" else "a logit"
    return f"it has one output, {what}: taken as two classes, 0 for no and 1 for yes"
