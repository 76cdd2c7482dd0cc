"""Rotation, zoom and elastic displacement of a batch of images in one resampling.

DIP-KD (arXiv 2604.25794) rotates its noise by U(-45, 45) degrees, moves it elastically and crops it.

B images, H x W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_CELLS = 4  # displacements are drawn on a grid of so many cells along each side, and cubic between
_LEAST_SEEN = 0.7  # of an image's sides, where the crop enlarges it most


def warped(images: Tensor, rotation: float, elastic: float) -> Tensor:
    """Images (B, 3, H, W) turned by up to `rotation` degrees, displaced by smooth noise and enlarged.

    The noise has a standard deviation of up to `elastic`, of half the image's side. What lies outside is the image's
    mirror image.
    """
    count, _, height, width = images.shape
    device = images.device
    angle = math.radians(rotation) * (2 * torch.rand(count, device=device) - 1)
    seen = _LEAST_SEEN + (1 - _LEAST_SEEN) * torch.rand(count, device=device)
    middle = (1 - seen)[:, None] * (2 * torch.rand(count, 2, device=device) - 1)
    grid = F.affine_grid(turned(angle, seen, middle, height / width), list(images.shape), align_corners=False)
    if elastic:
        strength = elastic * torch.rand(count, 1, 1, 1, device=device)
        coarse = strength * torch.randn(count, 2, _CELLS + 1, _CELLS + 1, device=device)
        fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
        grid = grid + fine.movedim(1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def turned(angle: Tensor, scale: Tensor, middle: Tensor, tall: float) -> Tensor:
    """(B, 2, 3) matrices for `affine_grid`: a turn in pixels, so in coordinates from -1 to 1 of an image `tall` : 1."""
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin * tall], 1), torch.stack([sin / tall, cos], 1)]
    return torch.cat([torch.stack(rows, 1), middle[..., None]], 2)
