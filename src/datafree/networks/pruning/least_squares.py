"""A convolution or linear layer that is solved for: what it takes, what it answers, and a solution written into it.

P sampled positions, G groups, K inputs of an output (kernel included), O outputs of a group, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datafree.networks.pruning.equations import Solution

Layer = nn.Conv2d | nn.Linear


def patches(layer: Layer, x: Tensor, positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """(G, P, K) what the `layer` takes at `positions` of its answers, counted through all of `size`.

    `size`: (B, h, w) of a convolution's answer, (rows,) of a linear layer's.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])[positions][None]
    (up, left), (down, right), (dy, dx) = _pair(layer.padding), layer.stride, layer.dilation
    rows = F.pad(x, (left, left, up, up)).permute(0, 2, 3, 1).contiguous()  # (B, H, W, channels)
    image = positions // (size[1] * size[2])
    y, z = positions // size[2] % size[1] * down, positions % size[2] * right
    taps = [
        rows[image, y + i * dy, z + j * dx] for i in range(layer.kernel_size[0]) for j in range(layer.kernel_size[1])
    ]
    together = torch.stack(taps, -1)  # (P, channels, taps)
    return together.view(len(positions), layer.groups, -1).transpose(0, 1)


def answer_size(layer: Layer, x: Tensor) -> tuple[int, ...]:
    """(B, h, w) or (rows,) of the layer's answer."""
    if isinstance(layer, nn.Linear):
        return (x.numel() // x.shape[-1],)
    pads = _pair(layer.padding)
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    sides = [(n + 2 * p - r - 1) // s + 1 for n, p, r, s in zip(x.shape[2:], pads, reach, layer.stride, strict=True)]
    return (len(x), *sides)


def at(answer: Tensor, positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """(P, O) of a convolution's map (B, O, h, w), or of a linear layer's rows (..., O); `size` as in `patches`."""
    if len(size) == 1:
        return answer.reshape(-1, answer.shape[-1])[positions]
    height, width = answer.shape[2:]
    return answer[positions // (height * width), :, positions // width % height, positions % width]


def can_solve(layer: nn.Module) -> bool:
    """Whether it is a layer that can be solved for: its weight multiplies what it takes, as it stands."""
    if type(layer).forward not in (nn.Linear.forward, nn.Conv2d.forward) or parametrize.is_parametrized(layer):
        return False  # such as one that standardises its weight, or pads by itself
    return isinstance(layer, nn.Linear) or (not isinstance(layer.padding, str) and layer.padding_mode == "zeros")


def can_hold(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm with running statistics, a gain and a bias."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return isinstance(norm, kinds) and norm.running_mean is not None and norm.affine


def groups_of(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def as_matrix(layer: Layer) -> Tensor:
    """The layer's weight as (G, K, O)."""
    weight = layer.weight.detach().flatten(1)
    return weight.view(groups_of(layer), -1, weight.shape[1]).mT


def put(layer: Layer, norm: nn.BatchNorm2d | nn.BatchNorm1d | None, solution: Solution, rows: Tensor) -> None:
    """Write a solution into a layer, and into the BatchNorm behind it so that it answers x weight + offset.

    `rows` (G * O,): which outputs to write.
    """
    with torch.no_grad():
        weight = solution.weight.mT.reshape(layer.weight.shape).to(layer.weight.dtype)
        layer.weight[rows] = weight[rows]
        offset, mean, variance = (one.flatten() for one in (solution.offset, solution.mean, solution.variance))
        if norm is None:
            if layer.bias is not None:
                layer.bias[rows] = offset.to(layer.bias.dtype)[rows]
            return
        if layer.bias is not None:
            layer.bias[rows] = 0.0
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean[rows] = mean.to(norm.running_mean.dtype)[rows]
        norm.running_var[rows] = variance.to(norm.running_var.dtype)[rows]
        norm.weight[rows] = (variance + norm.eps).sqrt().to(norm.weight.dtype)[rows]
        norm.bias[rows] = (mean + offset).to(norm.bias.dtype)[rows]


def folded(layer: Layer, norm: nn.BatchNorm2d | nn.BatchNorm1d | None) -> Tensor:
    """(G, K, O) the layer's weight times the gain of its BatchNorm over the standard deviation."""
    weight = as_matrix(layer)
    if norm is None or norm.running_var is None:
        return weight
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    return weight * gain.view(weight.shape[0], 1, -1)


def _pair(padding: str | tuple[int, ...]) -> tuple[int, int]:
    assert not isinstance(padding, str)
    return padding[0], padding[1]
