"""Mosaic augmentation, four images 2 x 2, of a share of a batch and its boxes.

B images, M rows of targets, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.ops import augment, boxes


@torch.no_grad()
def tiled(images: Tensor, targets: Tensor, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) of `size` and their boxes (B, M, 5), the first `count` of them tiles of four of the batch.

    The four are drawn, and differ from each other where B > 3. Nothing is drawn, and nothing copied, for no tile.
    """
    if not count:
        return images, targets
    drawn = torch.randperm(len(images), device=images.device)
    order = torch.stack([drawn.roll(shift)[:count] for shift in range(4)], 1)
    changed, moved = images.clone(), targets.clone()
    changed[:count] = augment.mosaic(images, order)
    moved[:count] = boxes.mosaic(targets, order, size)
    return changed, moved
