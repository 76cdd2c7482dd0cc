"""Figures: one thing of a few parts before a background, often the same on its left and its right.

What a classifier is shown has a contour, and contours teach: Kataoka et al., "Replacing Labeled Real-image Datasets
with Auto-generated Contours", CVPR 2022, arXiv 2206.09132, whose figures are closed polygons. Those here are ours: a
trunk with up to four limbs, superellipses (Lame: |u / a|^p + |v / b|^p < 1), some of which are holes.

B images, H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LIMBS = 4  # at most
_THERE = 0.6  # probability of each
_HOLE = 0.15  # of a limb that it shows the background
_SYMMETRIC = 0.6  # of a figure that its left is its right
_UPRIGHT = 0.6  # of a limb that it stands or lies, about
_POWERS = (1.2, 8.0)  # p, logarithms even: a rhombus' corners to a rectangle's
_TRUNK = (0.15, 0.95)  # half its width and height, of half the image's longer side
_LONG, _THIN = (0.15, 0.9), (0.05, 0.35)  # of a limb, so as well
_SHADE = 0.15  # standard deviation of a part's colour from its figure's


def figures(count: int, size: tuple[int, int], textures: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1]; a figure shows its texture (B, 3, H, W) in [0, 1] or none, behind it the next one's."""
    device = textures.device
    x, y = _places(count, size, device)
    image = _backgrounds(textures.roll(1, 0))
    behind = image
    colour = torch.rand(count, 3, 1, 1, device=device)
    grain = (2 * torch.rand(count, 1, 1, 1, device=device) - 1) * _odds(count, 2 / 3, device)
    trunk = _drawn(_TRUNK, 2, count, device)  # (2, B, 1, 1): half its width, half its height
    for limb in range(1 + LIMBS):
        shade = (colour + _SHADE * torch.randn(count, 3, 1, 1, device=device)).clamp(0, 1)
        surface = (shade + grain * (textures - 0.5)).clamp_(0, 1)
        if limb == 0:
            cover = _superellipse(x, y, trunk[0], trunk[1])
        else:
            cover = _limb(x, y, trunk) * _odds(count, _THERE, device)
            surface = torch.where(_odds(count, _HOLE, device).bool(), behind, surface)
        image = torch.lerp(image, surface, cover)
    return image


def _places(count: int, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """x (B, 1, 1, W) and y (B, 1, H, 1), -1 to 1 along the longer side; of a symmetric figure |x|."""
    longer = max(size)
    y, x = (((torch.arange(side, device=device) + 0.5) * 2 - side) / longer for side in size)
    across = x.view(1, 1, 1, -1).expand(count, -1, -1, -1)
    across = torch.where(_odds(count, _SYMMETRIC, device).bool(), across.abs(), across)
    return across, y.view(1, 1, -1, 1).expand(count, -1, -1, -1)


def _backgrounds(textures: Tensor) -> Tensor:
    """(B, 3, H, W): black, white, a colour, or the texture, at equal odds."""
    count, device = len(textures), textures.device
    kind = torch.randint(4, (count, 1, 1, 1), device=device)
    colour = torch.where(kind == 2, torch.rand(count, 3, 1, 1, device=device), kind.float().clamp(max=1))
    return torch.where(kind == 3, textures, colour)


def _limb(x: Tensor, y: Tensor, trunk: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1]: what a limb covers that begins somewhere in the trunk (2, B, 1, 1)."""
    count, device = len(x), x.device
    right, down = trunk * (2 * torch.rand(2, count, 1, 1, 1, device=device) - 1)
    long, thin = _drawn(_LONG, 1, count, device)[0], _drawn(_THIN, 1, count, device)[0]
    quarter = torch.randint(4, (count, 1, 1, 1), device=device) * (math.pi / 2)
    about = quarter + 0.25 * torch.randn(count, 1, 1, 1, device=device)
    any_way = 2 * math.pi * torch.rand(count, 1, 1, 1, device=device)
    angle = torch.where(_odds(count, _UPRIGHT, device).bool(), about, any_way)
    cos, sin = angle.cos(), angle.sin()
    x, y = x - right - cos * long, y - down - sin * long  # from the limb's own middle
    return _superellipse(x * cos + y * sin, y * cos - x * sin, long, thin)


def _superellipse(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1]: whether |u / a|^p + |v / b|^p < 1, its edge a pixel wide; p (B) is drawn here."""
    low, high = _POWERS
    power = low * (high / low) ** torch.rand(len(u), 1, 1, 1, device=u.device)
    reach = ((u / a).abs() ** power + (v / b).abs() ** power) ** (1 / power)
    pixels = max(u.shape[-1], v.shape[-2]) / 2  # of a length of 1
    return ((1 - reach) * torch.minimum(a, b) * pixels + 0.5).clamp_(0, 1)


def _drawn(bounds: tuple[float, float], numbers: int, count: int, device: torch.device) -> Tensor:
    """(numbers, B, 1, 1, 1) between bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(numbers, count, 1, 1, 1, device=device)


def _odds(count: int, share: float, device: torch.device) -> Tensor:
    """(B, 1, 1, 1): 1 with the probability of `share`, else 0."""
    return (torch.rand(count, 1, 1, 1, device=device) < share).float()
