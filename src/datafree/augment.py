"""Differentiable moves of images, their targets with them: what is drawn anew each time an image is looked at.

Targets that have places (masks, (B, H, W)) move with the pixels; labels (B,) stay. Where an image moves out of its
frame, black comes in beside a label, and the edge's pixels and classes go on beside a mask, so that it stays true.

B images, H x W pixels. Every number is drawn from torch's global generators.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def roll_and_flip(images: Tensor, targets: Tensor, jitter: int) -> tuple[Tensor, Tensor]:
    """The whole batch rolled by up to `jitter` pixels each way, then mirrored with probability 1/2.

    As in DeepInversion (Yin et al., arXiv 1912.08795): pixels that leave on one side come in on the other.
    Images (B, 3, H, W), targets (B,) or (B, H, W); returns both, moved alike.
    """
    down, right = torch.randint(-jitter, jitter + 1, (2,)).tolist()
    mirrored = bool(torch.rand(()) < 0.5)
    moved = []
    for maps in (images, targets) if targets.ndim == 3 else (images,):
        maps = torch.roll(maps, (down, right), (-2, -1))
        moved.append(maps.flip(-1) if mirrored else maps)
    return moved[0], moved[1] if targets.ndim == 3 else targets


def shift_and_flip(images: Tensor, targets: Tensor | None, most: int) -> tuple[Tensor, Tensor | None]:
    """Each image shifted by up to `most` pixels each way and mirrored with probability 1/2, on its own.

    The crop of padded images that CIFAR networks are trained with (He et al., arXiv 1512.03385, section 4.2).
    Images (B, 3, H, W), targets (B,), (B, H, W) or None; returns both, moved alike.
    """
    count, _, height, width = images.shape
    pixels = torch.randint(-most, most + 1, (count, 2), device=images.device)  # right, down
    offset = 2 * pixels / torch.tensor([width, height], device=images.device)
    scale = torch.ones_like(offset)
    scale[:, 0] -= 2 * (torch.rand(count, device=images.device) < 0.5)
    if targets is None or targets.ndim != 3:
        return _resampled(images, scale, offset, "zeros"), targets
    masks = _resampled(targets[:, None].float(), scale, offset, "border", "nearest")
    return _resampled(images, scale, offset, "border"), masks[:, 0].to(targets.dtype)


def blend(images: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """A `share` of the images, each mixed with another of the batch, weights U(0, 1) and the rest; and which are whole.

    Mixup (Zhang et al., arXiv 1710.09412): a teacher answers mixtures as readily as images, so that a student learns
    it between the images too. Images (B, 3, H, W) -> the same shape, and the (M,) indices of those left as they were.
    """
    order = torch.randperm(len(images), device=images.device)
    count = round(share * len(images))
    chosen, others = order[:count], order.roll(1)[:count]
    weight = torch.rand(count, 1, 1, 1, device=images.device)
    mixed = images.clone()
    mixed[chosen] = weight * images[chosen] + (1 - weight) * images[others]
    return mixed, order[count:]


def resized_crop(images: Tensor, least: float = 0.25) -> Tensor:
    """A part of each image, `least` to all of its area, 3:4 to 4:3 of its shape, at full size; mirrored at 1/2.

    Images (B, 3, H, W) -> (B, 3, H, W). The local view of CMI (Fang et al., arXiv 2105.08584).
    """
    count, device = len(images), images.device
    area = least + (1 - least) * torch.rand(count, 1, device=device)
    shape = torch.exp((2 * torch.rand(count, 1, device=device) - 1) * torch.log(torch.tensor(4 / 3, device=device)))
    scale = torch.cat([area * shape, area / shape], 1).sqrt().clamp_max(1.0)  # width, height of the part
    offset = (1 - scale) * (2 * torch.rand(count, 2, device=device) - 1)
    scale[:, 0] *= 1 - 2 * (torch.rand(count, device=device) < 0.5).float()
    return _resampled(images, scale, offset, "zeros")


def _resampled(maps: Tensor, scale: Tensor, offset: Tensor, padding: str, mode: str = "bilinear") -> Tensor:
    """Place x of the result is place scale * x + offset of `maps` (-1 to 1 from edge to edge); (B, 2) each, x first."""
    theta = torch.cat([torch.diag_embed(scale), offset[..., None]], 2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode=mode, padding_mode=padding, align_corners=False)
