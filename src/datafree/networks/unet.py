"""A small segmentation network of our own, for students that must run on CPUs.

B images, C classes, H x W pixels; `skip` is the encoder's map of the same level.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import NetworkError


def unet(num_classes: int, width: int = 16, depth: int = 4, stride: int = 2, channels: int = 3) -> nn.Module:
    """A compact U-Net with BatchNorm: (B, channels, H, W) -> logits (B, C, H, W), for any H and W.

    After Ronneberger et al., arXiv 1505.04597, with three changes for speed: the stem already divides the
    resolution by `stride`, channels are narrow and stop growing at 8 * `width`, and a decoder level cuts its
    channels (1x1) before it enlarges them. No dropout: train and eval differ in BatchNorm only.

    `width`: channels of the first level. `depth`: levels, each at half the resolution of the one before.
    `stride`: 1, 2 or 4; logits are made at H/stride x W/stride, then enlarged bilinearly to H x W.
    Raises NetworkError for values that make no network.
    """
    for name, value in (("num_classes", num_classes), ("width", width), ("depth", depth), ("channels", channels)):
        if not isinstance(value, int) or value < 1:
            raise NetworkError(f"{name} of datafree/unet is {value!r}: give a whole number of at least 1")
    if stride not in (1, 2, 4):
        raise NetworkError(f"stride of datafree/unet is {stride!r}: give 1, 2 or 4")
    return UNet(num_classes, [width * min(2**level, 8) for level in range(depth)], stride, channels)


class UNet(nn.Module):
    """See `unet`. `channels`: of each level, the finest first. `inputs`: channels of the images."""

    def __init__(self, num_classes: int, channels: list[int], stride: int, inputs: int) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.stem = nn.Sequential(
            _conv(inputs, channels[0], stride=min(stride, 2)),
            _conv(channels[0], channels[0], stride=2 if stride == 4 else 1),
        )
        self.down = nn.ModuleList(
            nn.Sequential(_conv(fine, coarse, stride=2), _conv(coarse, coarse)) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(_Up(coarse, fine) for fine, coarse in reversed(pairs))
        self.head = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)  # (B, width, H / stride, W / stride)
        skips: list[Tensor] = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up in self.up:
            x = up(x, skips.pop())
        logits: Tensor = self.head(x)  # (B, C, H / stride, W / stride)
        return _resize(logits, images)


class _Up(nn.Module):
    """Bring a coarse map to the size and channels of `skip` and mix both."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.reduce = _conv(coarse, fine, kernel=1)
        self.mix = nn.Sequential(_conv(2 * fine, fine), _conv(fine, fine))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = _resize(self.reduce(x), skip)
        mixed: Tensor = self.mix(torch.cat([x, skip], 1))
        return mixed


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; stride 2 gives ceil(H / 2) x ceil(W / 2)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`, bilinearly."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
