"""Darknet's .weights files, written for tests as Darknet does: a header of version 0.2.5, then each layer's numbers."""

from __future__ import annotations

import struct
from pathlib import Path

from torch import nn

from datafree.networks.darknet.network import Darknet


def save_darknet_weights(network: Darknet, path: Path) -> None:
    """Write a network's convolutions in the order of its cfg: bias [scale, mean, variance], weight; float32."""
    parts = [struct.pack("<3iq", 0, 2, 5, 0)]
    for layer in network.layers().values():
        conv, norm = getattr(layer, "conv", None), getattr(layer, "norm", None)
        if not isinstance(conv, nn.Conv2d):
            continue
        if isinstance(norm, nn.BatchNorm2d):
            tensors = [norm.bias, norm.weight, norm.running_mean, norm.running_var, conv.weight]
        else:
            tensors = [conv.bias, conv.weight]
        parts += [tensor.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes() for tensor in tensors]
    path.write_bytes(b"".join(parts))
