"""Hierarchical noise: uniform noise at every resolution from one cell up, mixed with random weights.

DIP-KD, arXiv 2604.25794 (Vo et al.): x = sum_d w_d upscale(x_d), x_d ~ U[0, 1] of 2^d x 2^d cells.

B images, H x W pixels, D levels, S = 2^(D - 1) the finest level's side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_GAIN = 4.0  # a convex mixture of D levels has about 1 / sqrt(D) of one level's contrast
_OFFSET = 0.15  # standard deviation of a channel's offset


def hierarchical_noise(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, 3, H, W) in [0, 1]; each image upscaled by nearest or by linear doublings, at even odds.

    The paper leaves the interpolation open: nearest gives blocks, linear gives blobs.
    """
    weights = level_weights(count, levels(size), device)
    smooth = int((torch.rand(count) < 0.5).sum())  # which ones does not matter; on the host, which needs the number
    parts = [_mixed(weights[:smooth], "bilinear"), _mixed(weights[smooth:], "nearest")]
    return _cropped(torch.cat([part for part in parts if len(part)]), size)


def levels(size: tuple[int, int]) -> int:
    """D = 1 + ceil(log2 max(H, W)): from one cell to at least a cell a pixel."""
    return 1 + math.ceil(math.log2(max(size)))


def level_weights(count: int, depth: int, device: torch.device) -> Tensor:
    """(B, D): softmax of D numbers N(0, 1)."""
    return torch.randn(count, depth, device=device).softmax(1)


def stretched(images: Tensor) -> Tensor:
    """Each channel of each image (B, 3, H, W) about mid-grey times 1 to 4 plus an offset, clamped to [0, 1].

    Ours: the mixture's contrast is low, and a network meets images of any contrast. Logarithms of gains are even.
    """
    draw = torch.rand(len(images), 3, 1, 1, device=images.device)
    offset = _OFFSET * torch.randn(len(images), 3, 1, 1, device=images.device)
    return ((images - 0.5) * _MOST_GAIN**draw + 0.5 + offset).clamp_(0, 1)


def _mixed(weights: Tensor, mode: str) -> Tensor:
    """(B, 3, S, S) of weights (B, D): a level is doubled as often as it takes to reach S."""
    count, depth = weights.shape
    mixed = weights.new_zeros(count, 3, 1, 1)
    for level in range(depth if count else 0):
        if level:
            mixed = F.interpolate(mixed, scale_factor=2, mode=mode)
        mixed = mixed + weights[:, level, None, None, None] * torch.rand_like(mixed)
    return mixed


def _cropped(images: Tensor, size: tuple[int, int]) -> Tensor:
    """A window of `size`, anywhere, of images (B, 3, S, S); the same for all of them."""
    top, left = (int(torch.randint(images.shape[-1] - side + 1, ())) for side in size)
    return images[..., top : top + size[0], left : left + size[1]]
