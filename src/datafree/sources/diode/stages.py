"""The stages in which DIODE optimises a batch of images, one after another, each at a size of its own.

Rates, weights and numbers of iterations are those of its published settings (see `diode`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from typing_extensions import Doc

from datafree.config import options
from datafree.config.options import Count, Momentum, NonNegative, Positive, PositiveInt, Weight


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass over a batch's pixels, at one size."""

    scale: Annotated[float, Field(gt=0, le=1), Doc("of task.image_size")] = 1.0
    iterations: PositiveInt = 1500
    lr: Annotated[Positive, Doc("Adam's, in pixel values")] = 0.002
    lr_end: Annotated[NonNegative, Doc("of the cosine")] = 0.0005
    beta1: Annotated[Momentum, Doc("both 0: every step is lr times the gradient's sign")] = 0.9
    beta2: Momentum = 0.999
    jitter: Annotated[Count, Doc("pixels: the batch is rolled by up to this, each iteration")] = 40
    detection_weight: Annotated[Weight, Doc("of the detector's own training loss on the boxes")] = 1.0
    first_bn_weight: Annotated[Weight, Doc("of the first BatchNorm layer's distance, on top of bn_weight")] = 0.0
    bn_layers: Annotated[Count, Doc("the first so many of the backbone's count; 0 = all")] = 0

    def __post_init__(self) -> None:
        options.check(self)

    def size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of this stage's images, of a task's `image_size`."""
        height, width = image_size
        return round(height * self.scale), round(width * self.scale)


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
