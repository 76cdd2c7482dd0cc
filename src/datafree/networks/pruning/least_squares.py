"""Ridge least squares for one layer: a convolution or linear layer solved from its inputs to its targets.

P sampled positions, G groups, K inputs of an output (kernel included), O outputs of a group, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear
_EXACT = 512  # inputs up to which sums of products are in float64; beyond, chunks are in float32 for speed
_CHUNK = 4096  # positions


@dataclass(kw_only=True)
class Moments:
    """Sums over positions, in float64: of inputs, targets and their products."""

    count: int
    x: Tensor  # (G, K)
    y: Tensor  # (G, O)
    xx: Tensor  # (G, K, K)
    xy: Tensor  # (G, K, O)
    yy: Tensor  # (G, O)

    @classmethod
    def empty(cls, groups: int, inputs: int, outputs: int, device: torch.device) -> Moments:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        return cls(
            count=0,
            x=zeros(inputs),
            y=zeros(outputs),
            xx=zeros(inputs, inputs),
            xy=zeros(inputs, outputs),
            yy=zeros(outputs),
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Inputs (G, P, K) and targets (G, P, O)."""
        kind = torch.float64 if x.shape[-1] <= _EXACT else torch.float32
        for part, wanted in zip(torch.split(x, _CHUNK, 1), torch.split(y, _CHUNK, 1), strict=True):
            a, b = part.to(kind), wanted.to(kind)
            self.count += a.shape[1]
            self.x += a.sum(1)
            self.y += b.sum(1)
            self.xx += a.mT @ a
            self.xy += a.mT @ b
            self.yy += b.square().sum(1)


@dataclass(kw_only=True)
class Solution:
    """weight (G, K, O) and offset (G, O) that answer the targets best; mean and variance of x weight."""

    weight: Tensor
    offset: Tensor
    mean: Tensor  # (G, O)
    variance: Tensor  # (G, O)
    error: float  # the share of the targets' variance that is left


def solve(moments: Moments, prior: Tensor, ridge: float, offset: bool = True) -> Solution:
    """min |Y - X W - 1 b|^2 + ridge * m |W - prior|^2 in closed form, m the mean of the diagonal of X'X.

    X and Y are centred where there is an `offset`, on which no penalty lies. `prior` (G, K, O): weights as they are.
    """
    n, prior = max(moments.count, 1), prior.double()
    mean_x, mean_y = moments.x / n, moments.y / n
    xx = moments.xx / n - mean_x[:, :, None] * mean_x[:, None] * offset
    xy = moments.xy / n - mean_x[:, :, None] * mean_y[:, None] * offset
    scale = xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    eye = torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
    penalised = xx + ridge * scale[:, None, None] * eye
    weight = prior + torch.linalg.solve(penalised, xy - xx @ prior)
    centred = moments.xx / n - mean_x[:, :, None] * mean_x[:, None]
    mean = (mean_x[:, None] @ weight)[:, 0]
    variance = (weight * (centred @ weight)).sum(1).clamp_min(0)
    total = moments.yy / n - mean_y.square() * offset
    left = total - 2 * (weight * xy).sum(1) + (weight * (xx @ weight)).sum(1)
    return Solution(
        weight=weight,
        offset=(mean_y - mean) if offset else torch.zeros_like(mean),
        mean=mean,
        variance=variance,
        error=float(left.clamp_min(0).sum() / total.sum().clamp_min(1e-12)),
    )


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
    """Whether it is a layer that can be solved for."""
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str) and layer.padding_mode == "zeros"


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
