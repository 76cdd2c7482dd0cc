"""The .weights files of Darknet: a header and float32 numbers, without names or shapes.

The header is major, minor, revision (int32) and the number of images seen (int64 from version 0.2 on, else int32). Then
come, for each [convolutional] in the order of the cfg, the BatchNorm's bias, scale, mean and variance, or without
BatchNorm the convolution's bias; and then the convolution's weights (outputs, inputs, height, width). All is
little-endian. Nothing in a file says what its numbers belong to: that it fits a network shows in its length alone.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from datafree.errors import WeightsError
from datafree.networks.darknet.layers import Head
from datafree.networks.darknet.network import Darknet
from datafree.text import one_line

_FLOAT = 4  # bytes


def load_darknet_weights(network: nn.Module, path: Path) -> None:
    """Copy the numbers of a .weights file into a `Darknet` network, all or none. Raises WeightsError.

    A file that does not fit is refused by its length, before anything is read: the error names the first layer that
    does not fit, its bytes, and what is there.
    """
    if not isinstance(network, Darknet):
        raise WeightsError(
            f"weights {path}: a Darknet file fits datafree/yolov3 or its cfg, not a {type(network).__name__}"
        )
    if not path.is_file():
        raise WeightsError(f"weights {path}: {'not a file' if path.exists() else 'no such file'}")
    layers = _numbers(network)
    try:
        with path.open("rb") as file:
            start = _header(path, file.read(12))
        _check_length(network, layers, path, start)
        values = torch.from_numpy(np.fromfile(path, "<f4", offset=start).astype(np.float32, copy=False))
    except OSError as error:
        raise WeightsError(f"weights {path}: cannot be read ({one_line(error)})") from error
    copies: list[tuple[Tensor, Tensor]] = []
    for name, tensors in layers.items():
        for what, tensor in tensors.items():
            given, values = values[: tensor.numel()].view(tensor.shape), values[tensor.numel() :]
            if not torch.isfinite(given).all():
                raise WeightsError(f"weights {path}: {name} has a {what} that is not finite; use another file")
            if what == "variance" and (given < 0).any():
                raise WeightsError(f"weights {path}: {name} has a variance below 0; the file is of another network")
            copies.append((tensor, given))
    with torch.no_grad():
        for tensor, given in copies:
            tensor.copy_(given)


def _numbers(network: Darknet) -> dict[str, dict[str, Tensor]]:
    """Layer -> what it holds -> the tensor, in the order of the file."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, layer in network.layers().items():
        conv, norm = getattr(layer, "conv", None), getattr(layer, "norm", None)
        if not isinstance(conv, nn.Conv2d):
            continue
        if isinstance(norm, nn.BatchNorm2d):
            layers[name] = {
                "bias": norm.bias,
                "scale": norm.weight,
                "mean": cast(Tensor, norm.running_mean),
                "variance": cast(Tensor, norm.running_var),
            }
        else:
            layers[name] = {"bias": cast(Tensor, conv.bias)}
        layers[name]["weight"] = conv.weight
    return layers


def _header(path: Path, begin: bytes) -> int:
    """The header's length in bytes, from its first 12."""
    if len(begin) < 12:
        raise WeightsError(f"weights {path}: {len(begin)} bytes; a Darknet file begins with a header of 16 or 20")
    major, minor, _ = struct.unpack("<3i", begin)
    return 20 if major * 10 + minor >= 2 and major < 1000 and minor < 1000 else 16


def _check_length(network: Darknet, layers: dict[str, dict[str, Tensor]], path: Path, start: int) -> None:
    size = path.stat().st_size
    needed = {name: _FLOAT * sum(tensor.numel() for tensor in tensors.values()) for name, tensors in layers.items()}
    total = start + sum(needed.values())
    if size == total:
        return
    line = f"weights {path}: {size} bytes, but the network takes {total}"
    at = start
    for name, count in needed.items():
        if at + count > size:
            line += f": {name} takes {count}, from byte {at} on, and {max(size - at, 0)} are there"
            break
        at += count
    else:
        line += f": {size - total} are left after the last layer, {name}"
    names = list(network.layers())
    per_class = 0  # bytes that one more class adds
    for layer, sources in zip(network.layers().values(), network.sources, strict=True):
        before = layers.get(names[sources[0]], {})
        if isinstance(layer, Head):
            per_class += _FLOAT * len(layer.anchors) * sum(tensor[0].numel() for tensor in before.values())
    if per_class and (size - total) % per_class == 0 and network.classes + (size - total) // per_class > 0:
        line += f"; its length is that of {network.classes + (size - total) // per_class} classes"
    raise WeightsError(f"{line}; give the cfg, or variant and number of classes, that it was trained with")
