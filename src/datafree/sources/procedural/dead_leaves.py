"""Dead leaves: shapes whose sizes follow a power law, laid over one another, each in a colour and texture of its own.

Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 41, 2001; with the shapes and radii of Baradad et
al., arXiv 2106.05963.

B images, H x W pixels, L leaves an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datafree.ops.upload import uploaded

LEAVES = 48  # L; ours: the published ones go on until nothing is free, here the first leaf fills the image
RADII = (0.04, 1.0)  # of the longer side, least and most; published from .03, which is a pixel of 32
_EXTENT = 1.3  # radii that a quadrilateral's corner is away from its middle, at most
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
    """(B, H, W) int64: which leaf is seen; later ones lie over earlier ones, leaf 0 fills the image.

    The n-th leaves of all images have radii of one of L - 1 equal shares of the distribution, so that small ones are
    looked for in a small window.
    """
    longer = max(size)
    shares = torch.randperm(LEAVES - 1)  # on the CPU's generator: decided here, the same for all images
    round_ones = (torch.rand(LEAVES - 1) < 0.5).tolist()
    radius = radii(uploaded(shares, device)[:, None].expand(-1, count))
    middle = torch.rand(2, LEAVES - 1, count, 1, device=device)
    middle *= uploaded(size, device).view(2, 1, 1, 1) / longer  # down, right
    angle, reach = _half_planes(count, device)
    margin = longer // 4 + 2  # windows reach over the edge by half of their side
    owner = torch.zeros(count, size[0] + 2 * margin, size[1] + 2 * margin, dtype=torch.int16, device=device)
    for index, share in enumerate(shares.tolist()):
        side = math.ceil(2 * _EXTENT * longer * float(radii(torch.tensor(share), 1.0))) + 1
        corner = torch.full((2, count, 1), margin, device=device)
        sides = size
        if windowed := side < longer // 2:
            corner = corner + (middle[:, index] * longer - side / 2).floor().long()
            sides = (side, side)
        places = [start + torch.arange(length, device=device) for start, length in zip(corner, sides, strict=True)]
        y, x = ((at - margin + 0.5) / longer - middle[axis, index] for axis, at in enumerate(places))  # (B, h), (B, w)
        if round_ones[index]:
            aspect = 0.5 + 0.5 * reach[index, :, :1]
            inside = _ellipse(x, y, radius[index][:, None], aspect, angle[index, :, :1])
        else:
            inside = _polygon(x, y, radius[index][:, None], angle[index], reach[index])
        if windowed:
            where = (places[0][:, :, None] * owner.shape[2] + places[1][:, None]).flatten(1)
            flat = owner.view(count, -1)
            flat.scatter_(1, where, flat.gather(1, where).masked_fill_(inside.flatten(1), index + 1))
        else:
            _inner(owner, margin, size).masked_fill_(inside, index + 1)
    return _inner(owner, margin, size).long()


def _inner(owner: Tensor, margin: int, size: tuple[int, int]) -> Tensor:
    return owner[:, margin : margin + size[0], margin : margin + size[1]]


def radii(shares: Tensor, place: float | None = None) -> Tensor:
    """Radii of density proportional to r^-3 between the bounds, by the inverse of their distribution.

    Each is drawn from the given one, 0 to L - 2, of its L - 1 equal shares; or lies at a `place` from 0 to 1 in it.
    """
    low, high = (bound**-2 for bound in RADII)
    within = torch.rand(shares.shape, device=shares.device) if place is None else place
    inverse: Tensor = (low - (shares + within) / (LEAVES - 1) * (low - high)) ** -0.5
    return inverse


def _half_planes(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Angles and distances (L - 1, B, 4) of a polygon's sides: triangles, rectangles, squares, quadrilaterals."""
    shape = (LEAVES - 1, count, _CORNERS)
    quarter = math.pi / 2 * torch.arange(_CORNERS, device=device)
    third = 2 * math.pi / 3 * torch.arange(_CORNERS, device=device)  # the fourth is the first again
    loose = quarter + 0.4 * (torch.rand(shape, device=device) - 0.5)
    kind = torch.randint(4, (LEAVES - 1, count, 1), device=device)
    angle = torch.where(kind == 0, third, torch.where(kind == 1, loose, quarter))
    angle = angle + 2 * math.pi * torch.rand(LEAVES - 1, count, 1, device=device)
    sides = 0.3 + 0.7 * torch.rand(LEAVES - 1, count, 2, device=device)  # of a rectangle
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
