"""Dead leaves: shapes whose sizes follow a power law, laid over one another, each in a colour and texture of its own.

Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 41, 2001; with the shapes and radii of Baradad et
al., arXiv 2106.05963.

B images, H x W pixels, L leaves an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAVES = 48  # L; ours: the published ones go on until nothing is free, here the first leaf fills the image
RADII = (0.04, 1.0)  # of the longer side, least and most; published from .03, which is a pixel of 32
_CORNERS = 4  # half-planes of a polygon; a triangle has one of them twice


def dead_leaves(count: int, size: tuple[int, int], textures: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1]; each leaf shows its image's texture (B, 3, H, W) in [0, 1], the next one's, or none."""
    device = textures.device
    owner = topmost(count, size, device).flatten(1)  # (B, H * W)
    colours = torch.rand(count, 3, LEAVES, device=device)
    strength = 2 * torch.rand(count, 2, LEAVES, device=device) - 1  # of the two textures, negative: inverted
    kind = torch.randint(3, (count, LEAVES), device=device)
    strength = strength * torch.stack([kind == 0, kind == 1], 1)
    table = torch.cat([colours, strength], 1)  # (B, 5, L)
    seen = table.gather(2, owner[:, None].expand(-1, 5, -1)).view(count, 5, *size)
    shown = seen[:, :3] + seen[:, 3:4] * (textures - 0.5) + seen[:, 4:] * (textures.roll(1, 0) - 0.5)
    return shown.clamp_(0, 1)


def topmost(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, H, W) int64: which leaf is seen; later ones lie over earlier ones, leaf 0 fills the image."""
    longer = max(size)
    down, right = ((torch.arange(side, device=device) + 0.5) / longer for side in size)
    shape = (LEAVES, count, 1)
    middle_x = torch.rand(shape, device=device) * size[1] / longer
    middle_y = torch.rand(shape, device=device) * size[0] / longer
    x, y = right - middle_x, down - middle_y  # (L, B, W), (L, B, H)
    radius = radii(LEAVES * count, device).view(shape)
    turned, reach = _half_planes(count, device)  # (L, B, 4) each: angle, distance from the middle in radii
    owner = torch.zeros(count, *size, dtype=torch.int16, device=device)
    round_ones = (torch.rand(LEAVES) < 0.5).tolist()  # on the CPU's generator: decided here, the same for all images
    for leaf in range(1, LEAVES):
        if round_ones[leaf]:
            aspect = 0.5 + 0.5 * reach[leaf, :, :1]
            inside = _ellipse(x[leaf], y[leaf], radius[leaf], aspect, turned[leaf, :, :1])
        else:
            inside = _polygon(x[leaf], y[leaf], radius[leaf], turned[leaf], reach[leaf])
        owner.masked_fill_(inside, leaf)
    return owner.long()


def radii(count: int, device: torch.device) -> Tensor:
    """(N,) radii of density proportional to r^-3 between the bounds, by the inverse of their distribution."""
    low, high = (bound**-2 for bound in RADII)
    return (low - torch.rand(count, device=device) * (low - high)) ** -0.5


def _half_planes(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Angles and distances (L, B, 4) of a polygon's sides: triangles, rectangles, squares, any quadrilaterals."""
    shape = (LEAVES, count, _CORNERS)
    quarter = math.pi / 2 * torch.arange(_CORNERS, device=device)
    third = 2 * math.pi / 3 * torch.arange(_CORNERS, device=device)  # the fourth is the first again
    loose = quarter + 0.6 * (torch.rand(shape, device=device) - 0.5)
    kind = torch.randint(4, (LEAVES, count, 1), device=device)
    angle = torch.where(kind == 0, third, torch.where(kind == 1, loose, quarter))
    angle = angle + 2 * math.pi * torch.rand(LEAVES, count, 1, device=device)
    sides = 0.3 + 0.7 * torch.rand(LEAVES, count, 2, device=device)  # of a rectangle
    reach = torch.where(kind == 2, sides.repeat(1, 1, 2), 1.0) / math.sqrt(2)
    return angle, torch.where(kind == 0, 0.5, reach)


def _ellipse(x: Tensor, y: Tensor, radius: Tensor, aspect: Tensor, angle: Tensor) -> Tensor:
    """(B, H, W) bool: places x (B, W), y (B, H) from a middle lie within its radius (B, 1), one axis times `aspect`."""
    cos, sin = angle.cos() / radius, angle.sin() / radius
    along = (cos * x)[:, None] + (sin * y)[:, :, None]
    across = (cos / aspect * y)[:, :, None] - (sin / aspect * x)[:, None]
    return torch.addcmul(along.square_(), across, across) < 1


def _polygon(x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, reach: Tensor) -> Tensor:
    """(B, H, W) bool: within the half-planes at angles (B, 4), whose edges are `reach` radii away."""
    cos, sin = angle.cos() / radius, angle.sin() / radius  # (B, 4)
    farthest: Tensor | None = None
    for side in range(_CORNERS):
        one = slice(side, side + 1)
        beyond = (cos[:, one] * x - reach[:, one])[:, None] + (sin[:, one] * y)[:, :, None]
        farthest = beyond if farthest is None else torch.maximum(farthest, beyond, out=farthest)
    assert farthest is not None
    return farthest < 0
