"""Mask CutMix: two images joined along the soft, winding border of a random mask.

DIP-KD, arXiv 2604.25794: a mask begins as uniform noise and is blurred and diverged in turn, about ten times.

B images, H x W pixels, R rows and columns of a mask before it is enlarged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 10
_SIDE = 32  # R at most: a mask is smooth, and a larger one would cost as much as the images
_BLUR = (1 / 32, 1 / 12)  # standard deviation of the blur, of R: parts are about four times as large


def diverge(mask: Tensor, middle: float = 0.5) -> Tensor:
    """Values in [0, 1] driven away from `middle`: two half-parabolas through (0, 0), (b, b) and (1, 1).

    m^2 / b below b, (m^2 - 2 m + b) / (b - 1) above. The paper prints the two cases exchanged, so that values leave
    [0, 1]; its text, convex on the left and concave on the right, is this.
    """
    low = mask**2 / middle
    high = (mask**2 - 2 * mask + middle) / (middle - 1)
    return torch.where(mask < middle, low, high)


def masks(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, 1, H, W) in [0, 1]: regions near 0 and near 1, of a size that each mask draws."""
    side = min(_SIDE, max(size))
    low, high = _BLUR
    width = side * low * (high / low) ** torch.rand(count, 1, 1, device=device)
    kernel = _blur_matrices(side, width)
    mask = torch.rand(count, side, side, device=device)
    for _ in range(ROUNDS):
        mask = diverge(kernel @ mask @ kernel.mT)
    mask = F.interpolate(mask[:, None], size=size, mode="bilinear", align_corners=False)
    return diverge(mask) if max(size) > side else mask  # an enlarged border is wide


def cutmixed(images: Tensor, share: float, plain: float) -> Tensor:
    """A `share` of the images (B, 3, H, W), each blended with another of them by a mask, or with a single colour.

    `plain` is the probability of a colour, which is black, white and any one at equal odds.
    """
    order = torch.randperm(len(images), device=images.device)
    count = round(share * len(images))
    chosen, others = order[:count], images[order.roll(1)[:count]]
    colour = torch.rand(count, 3, 1, 1, device=images.device)
    kind = torch.randint(3, (count, 1, 1, 1), device=images.device)
    colour = torch.where(kind == 2, colour, kind.float())
    others = torch.where(torch.rand(count, 1, 1, 1, device=images.device) < plain, colour, others)
    mask = masks(count, (images.shape[-2], images.shape[-1]), images.device)
    mixed = images.clone()
    mixed[chosen] = torch.lerp(others, images[chosen], mask)
    return mixed


def _blur_matrices(side: int, width: Tensor) -> Tensor:
    """(B, R, R): row i holds a Gaussian about i, of standard deviation `width` (B, 1, 1), brought to sum 1."""
    place = torch.arange(side, device=width.device)
    distance = (place[:, None] - place).float()
    return (-0.5 * (distance / width) ** 2).softmax(2)
