"""Differentiable augmentation of image batches, each move returned so that targets can follow.

Where pixels move, the answer says how (a `Move`), and `Task.move_targets` brings labels, masks or boxes after them.

B images, H x W pixels. Every number is drawn from torch's global generators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Move:
    """How the pixels of a batch went: first rolled, then resampled.

    Place x of a result shows place scale * x + offset of the rolled image, -1 to 1 from edge to edge; (B, 2), x before
    y, or None where nothing is resampled. A negative scale mirrors.
    """

    right: int = 0  # pixels that all images are rolled by; what leaves comes in on the other side
    down: int = 0
    scale: Tensor | None = None
    offset: Tensor | None = None
    padding: str = ""  # how it was resampled beyond the edge, where that is not as the task has it


def roll_and_flip(images: Tensor, jitter: int, mirror: float = 0.5) -> tuple[Tensor, Move]:
    """The whole batch (B, 3, H, W) rolled by up to `jitter` pixels each way, then mirrored with probability `mirror`.

    As in DeepInversion (Yin et al., arXiv 1912.08795): pixels that leave on one side come in on the other.
    """
    down, right = torch.randint(-jitter, jitter + 1, (2,)).tolist()
    rolled = torch.roll(images, (down, right), (-2, -1))
    if torch.rand(()) >= mirror:
        return rolled, Move(right=right, down=down)
    scale = torch.ones(len(images), 2, device=images.device)
    scale[:, 0] = -1
    return rolled.flip(-1), Move(right=right, down=down, scale=scale, offset=torch.zeros_like(scale))


def shift_and_flip(images: Tensor, most: int, padding: str = "zeros") -> tuple[Tensor, Move]:
    """Each image shifted by up to `most` pixels each way and mirrored with probability 1/2, on its own; 0: as it is.

    The crop of padded images that CIFAR networks are trained with (He et al., arXiv 1512.03385, section 4.2). Images
    (B, 3, H, W); what comes in from outside is black, what is at the edge (`padding` "border"), or the image mirrored
    there ("reflection").
    """
    if not most:
        return images, Move()
    count, _, height, width = images.shape
    x, y = torch.randint(-most, most + 1, (count, 2), device=images.device).unbind(1)  # pixels
    offset = torch.stack([2 * x / width, 2 * y / height], 1)
    scale = torch.ones_like(offset)
    scale[:, 0] -= 2 * (torch.rand(count, device=images.device) < 0.5)
    mirrored = padding if padding == "reflection" else ""
    return resampled(images, scale, offset, padding), Move(scale=scale, offset=offset, padding=mirrored)


def cutmix(images: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """A `share` of the images, each with a box of another of the batch at the same place; and which are whole.

    CutMix (Yun et al., arXiv 1905.04899, eq. 2, with Beta(1, 1)): the box has 1 - lambda of the area, lambda ~ U(0, 1),
    the image's shape and a centre anywhere, beyond the edge it is cut; each image has its own box. Images (B, 3, H, W)
    -> the same shape, and the (M,) indices of those left as they were.
    """
    count, _, height, width = images.shape
    order = torch.randperm(count, device=images.device)
    mixed = round(share * count)
    side = torch.rand(
        count, device=images.device
    ).sqrt()  # of the box, as a share of the image's; its square: 1 - lambda
    across, down = (side * width).round(), (side * height).round()
    left = (torch.rand(count, device=images.device) * width - across / 2).round()
    top = (torch.rand(count, device=images.device) * height - down / 2).round()
    inside = _rectangles(images, left, top, across, down)
    chosen, others = order[:mixed], order.roll(1)[:mixed]
    cut = images.clone()
    cut[chosen] = torch.where(inside[chosen], images[others], images[chosen])
    return cut, order[mixed:]


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
    shape = torch.exp((2 * torch.rand(count, 1, device=device) - 1) * math.log(4 / 3))
    scale, offset = _part(area, shape)
    scale[:, 0] *= 1 - 2 * (torch.rand(count, device=device) < 0.5).float()
    return resampled(images, scale, offset, "zeros")


def area_crop(images: Tensor, least: float) -> tuple[Tensor, Move]:
    """A part of each image (B, 3, H, W) at full size, its area U(`least`, 1), its shape 3:4 to 4:3 where that fits.

    With `least` near 1 it is nearly the whole image, of its own shape: a part that would be longer than the image is
    never drawn, as by torchvision's RandomResizedCrop. Not mirrored.
    """
    area = least + (1 - least) * torch.rand(len(images), 1, device=images.device)
    longest = area.log().neg().clamp_max(math.log(4 / 3))
    scale, offset = _part(area, torch.exp((2 * torch.rand_like(area) - 1) * longest))
    return resampled(images, scale, offset, "border"), Move(scale=scale, offset=offset)


def _part(area: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset (B, 2) of a part of each image, anywhere in it, of an area and a width over height (B, 1)."""
    scale = torch.cat([area * shape, area / shape], 1).sqrt().clamp_max(1.0)  # width, height of the part
    return scale, (1 - scale) * (2 * torch.rand_like(scale) - 1)


def scale_crop(images: Tensor, least: float, most: float, padding: str = "zeros") -> tuple[Tensor, Move]:
    """Each image enlarged `least` to `most` times, both axes alike, on its own; below 1 it shrinks.

    Of an enlarged image a part is seen, anywhere in it; a shrunken one is seen whole, anywhere in a black frame, or in
    one that goes on as its edge does (`padding` "border"). Twice and half as large are as likely. (B, 3, H, W).
    """
    count, _, height, width = images.shape
    one = (most / least) ** -torch.rand(count, 1, device=images.device) / least
    offset = (1 - one) * (2 * torch.rand(count, 2, device=images.device) - 1)
    scale = one.expand(-1, 2)
    moved = resampled(images, scale, offset, "border")  # else the outermost pixels would be blended with black
    if padding == "zeros":
        near = (1 - (1 + offset) / scale) / 2  # where the image begins, from 0 to 1; less half a pixel: of centres
        left, top = near[:, 0] * width - 0.5, near[:, 1] * height - 0.5
        moved = moved.masked_fill(~_rectangles(images, left, top, width / one[:, 0], height / one[:, 0]), 0.0)
    return moved, Move(scale=scale, offset=offset)


def mosaic(images: Tensor, order: Tensor) -> Tensor:
    """Four images in one, 2 x 2, each half as high and wide (means of 2 x 2 pixels); boxes: `boxes.mosaic`.

    Images (B, 3, H, W) and the indices (N, 4) of those seen top left, top right, bottom left and bottom right ->
    (N, 3, H, W). DIODE names a data set of "tiles" but says nothing of how they are laid; 2 x 2 is inferred.
    """
    height, width = images.shape[-2:]
    halves = F.avg_pool2d(images, 2, ceil_mode=True)
    rows = [torch.cat([halves[order[:, i]], halves[order[:, i + 1]]], -1) for i in (0, 2)]
    return torch.cat(rows, -2)[..., :height, :width]  # an odd size has half a pixel too many


def brightness(images: Tensor, std: float = 0.2) -> Tensor:
    """Each image (B, 3, H, W) plus a number of its own, N(0, `std`), not clamped. DIODE's published std."""
    return images + std * torch.randn(len(images), 1, 1, 1, device=images.device)


def contrast(images: Tensor, std: float = 0.1) -> Tensor:
    """Each image (B, 3, H, W) times a number of its own, N(1, `std`), so about black. DIODE's published std."""
    return images * (1 + std * torch.randn(len(images), 1, 1, 1, device=images.device))


def erase(
    images: Tensor, p: float = 0.5, area: tuple[float, float] = (0.02, 0.2), aspect: tuple[float, float] = (0.3, 3.3)
) -> Tensor:
    """A black rectangle in each image (B, 3, H, W), with probability `p`, of all channels; defaults are DIODE's.

    Its share of the image is U(`area`), its height over its width drawn from `aspect`, with logarithms even, so that
    flat ones are as likely as tall ones; it lies anywhere inside. One that would be longer than the image is cut.
    """
    count, _, height, width = images.shape
    pixels = height * width * (area[0] + (area[1] - area[0]) * torch.rand(count, device=images.device))
    tall = aspect[0] * (aspect[1] / aspect[0]) ** torch.rand(count, device=images.device)
    across = (pixels / tall).sqrt().round().clamp(1, width)
    down = (pixels * tall).sqrt().round().clamp(1, height)
    left = (torch.rand(count, device=images.device) * (width - across + 1)).floor()
    top = (torch.rand(count, device=images.device) * (height - down + 1)).floor()
    across = across * (torch.rand(count, device=images.device) < p)  # of no width where nothing is erased
    return images.masked_fill(_rectangles(images, left, top, across, down), 0.0)


def cutout(images: Tensor, side: float) -> Tensor:
    """A black square in each image (B, 3, H, W), its side a share of the image's shorter one, centred on any pixel.

    It may reach beyond the edge, then less of it is seen (DeVries and Taylor, arXiv 1708.04552, section 3.2).
    """
    count, _, height, width = images.shape
    length = round(side * min(height, width))
    left = torch.randint(width, (count,), device=images.device) - length // 2
    top = torch.randint(height, (count,), device=images.device) - length // 2
    whole = torch.full_like(left, length)
    return images.masked_fill(_rectangles(images, left, top, whole, whole), 0.0)


def _rectangles(images: Tensor, left: Tensor, top: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """(B, 1, H, W) bool: the pixels of a rectangle in each image; its corner and sides (B,), in pixels."""
    x = torch.arange(images.shape[-1], device=images.device)
    y = torch.arange(images.shape[-2], device=images.device)
    columns = (x >= left[:, None]) & (x < (left + across)[:, None])  # (B, W)
    rows = (y >= top[:, None]) & (y < (top + down)[:, None])  # (B, H)
    return (rows[:, :, None] & columns[:, None])[:, None]


def resampled(maps: Tensor, scale: Tensor, offset: Tensor, padding: str, mode: str = "bilinear") -> Tensor:
    """Place x of the result is place scale * x + offset of `maps` (-1 to 1 from edge to edge); (B, 2) each, x first."""
    theta = torch.cat([torch.diag_embed(scale), offset[..., None]], 2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode=mode, padding_mode=padding, align_corners=False)
