"""Ridge least squares in closed form: equations of one layer, gathered batch by batch.

P positions, G groups, K inputs of an output (kernel included), O outputs of a group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

_EXACT = 512  # inputs up to which sums of products are in float64; beyond, chunks are in float32 for speed
_CHUNK = 4096  # positions
_SQUARES = 5  # matrices of K x K (or P x P) that are in memory at once where moments (rows) are solved


@dataclass(kw_only=True)
class Solution:
    """weight (G, K, O) and offset (G, O) that answer the targets best; mean and variance of x weight."""

    weight: Tensor
    offset: Tensor
    mean: Tensor  # (G, O)
    variance: Tensor  # (G, O)
    error: float  # the share of the targets' variance that is left


class Equations(ABC):
    """X W + 1 b = Y for inputs X (G, P, K) and targets Y (G, P, O)."""

    @abstractmethod
    def add(self, x: Tensor, y: Tensor) -> None:
        """Add positions: (G, P, K) and (G, P, O)."""

    @abstractmethod
    def solve(self, prior: Tensor, ridge: float, offset: bool = True) -> Solution:
        """min |Y - X W - 1 b|^2 / P + ridge * m |W - prior|^2, m the mean square of an input.

        X and Y are centred where there is an `offset`, on which no penalty lies. `prior` (G, K, O): today's weights.
        """


def equations(positions: int, groups: int, inputs: int, outputs: int, device: torch.device) -> Equations:
    """None yet, of `positions` to come: as sums of products, or as rows where these are fewer than a row is long."""
    return Rows() if positions < inputs else Moments.empty(groups, inputs, outputs, device)


def bytes_of(positions: int, groups: int, inputs: int) -> int:
    """The memory that the equations of so many positions take while they are solved, about."""
    if positions < inputs:
        return 8 * groups * positions * (2 * inputs + _SQUARES * positions)
    return 8 * groups * _SQUARES * inputs**2


@dataclass(kw_only=True)
class Moments(Equations):
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
        kind = torch.float64 if x.shape[-1] <= _EXACT else torch.float32
        for part, wanted in zip(torch.split(x, _CHUNK, 1), torch.split(y, _CHUNK, 1), strict=True):
            a, b = part.to(kind), wanted.to(kind)
            self.count += a.shape[1]
            self.x += a.sum(1)
            self.y += b.sum(1)
            self.xx += a.mT @ a
            self.xy += a.mT @ b
            self.yy += b.square().sum(1)

    def solve(self, prior: Tensor, ridge: float, offset: bool = True) -> Solution:
        n, prior = max(self.count, 1), prior.double()
        mean_x, mean_y = self.x / n, self.y / n
        xx, xy = self.xx / n, self.xy / n
        if offset:
            xx.baddbmm_(mean_x[:, :, None], mean_x[:, None], alpha=-1)
            xy.baddbmm_(mean_x[:, :, None], mean_y[:, None], alpha=-1)
        penalty = ridge * xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        penalised = xx.clone()
        penalised.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
        weight = prior + torch.linalg.solve(penalised, xy - xx @ prior)
        mean = (mean_x[:, None] @ weight)[:, 0]
        square = (weight * (xx @ weight)).sum(1)  # of x weight, centred where there is an offset
        total = self.yy / n - mean_y.square() * offset
        return Solution(
            weight=weight,
            offset=(mean_y - mean) if offset else torch.zeros_like(mean),
            mean=mean,
            variance=(square - mean.square() * (not offset)).clamp_min(0),
            error=_share(total - 2 * (weight * xy).sum(1) + square, total),
        )


@dataclass(kw_only=True)
class Rows(Equations):
    """The positions themselves, where they are few: K x K sums of VGG's first linear layer are 5 GB.

    W = prior + X' (X X' + P ridge m 1)^-1 (Y - X prior), which is the same minimum.
    """

    x: list[Tensor] = field(default_factory=list)  # (G, P, K) of a batch
    y: list[Tensor] = field(default_factory=list)  # (G, P, O)

    def add(self, x: Tensor, y: Tensor) -> None:
        self.x.append(x)
        self.y.append(y)

    def solve(self, prior: Tensor, ridge: float, offset: bool = True) -> Solution:
        x, y, prior = torch.cat(self.x, 1).double(), torch.cat(self.y, 1).double(), prior.double()
        mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        if offset:
            x, y = x - mean_x, y - mean_y
        penalty = x.shape[1] * ridge * x.square().mean((1, 2)).clamp_min(1e-12)
        products = x @ x.mT
        products.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
        weight = prior + x.mT @ torch.linalg.solve(products, y - x @ prior)
        answer, mean = x @ weight, (mean_x @ weight)[:, 0]
        return Solution(
            weight=weight,
            offset=(mean_y[:, 0] - mean) if offset else torch.zeros_like(mean),
            mean=mean,
            variance=answer.var(1, unbiased=False),
            error=_share((y - answer).square().mean(1), y.square().mean(1)),
        )


def _share(left: Tensor, total: Tensor) -> float:
    return float(left.clamp_min(0).sum() / total.sum().clamp_min(1e-12))
