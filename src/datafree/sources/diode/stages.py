"""The stages in which DIODE optimises a batch of images, one after another, each at a size of its own.

Rates, weights and numbers of iterations are those of its published settings (see `diode`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from datafree.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass over a batch's pixels, at one size."""

    scale: float = 1.0  # of task.image_size
    iterations: int = 1500
    lr: float = 0.002  # Adam's, in pixel values
    lr_end: float = 0.0005  # of the cosine
    beta1: float = 0.9  # both 0: every step is lr times the gradient's sign
    beta2: float = 0.999
    jitter: int = 40  # pixels: the batch is rolled by up to this, each iteration
    detection_weight: float = 1.0  # of the detector's own training loss on the boxes
    first_bn_weight: float = 0.0  # of the first BatchNorm layer's distance, on top of bn_weight
    bn_layers: int = 0  # the first so many of the backbone's count; 0 = all

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise DataError(f"scale is {self.scale}; give a share of task.image_size, above 0 and up to 1")
        if self.iterations < 1:
            raise DataError(f"iterations is {self.iterations}; it must be at least 1")


def published_stages() -> list[Stage]:
    """160 pixels from noise, then 320: half the task's image_size, then all of it.

    Of the 52 BatchNorm layers of Darknet-53 all count in the first, all but the last in the second.
    """
    first = Stage(
        scale=0.5,
        iterations=2500,
        lr=0.2,
        lr_end=0.0,
        beta1=0.0,
        beta2=0.0,
        jitter=20,
        detection_weight=0.5,
        first_bn_weight=2.0,
    )
    return [first, Stage(bn_layers=51)]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] at `size` (height, width): those of one stage for the next."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
