"""What the adapters of torchvision's detectors share: padding, anchors, targets in torchvision's form.

B images, L locations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from datafree.ops.boxes import Labelled


def as_torchvision(targets: list[Labelled]) -> list[dict[str, Tensor]]:
    return [{"boxes": boxes, "labels": labels + 1} for labels, boxes in targets]


def padded_images(network: Any, images: Tensor) -> Tensor:
    down, right = (-side % network.transform.size_divisible for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down)) if down or right else images


def features_of(network: Any, images: Tensor) -> dict[str, Tensor]:
    features = network.backbone(images)
    return {"0": features} if isinstance(features, Tensor) else dict(features)


def anchors_of(generator: Any, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """(L, 4) anchors of an image, in pixels. In float32 also where autocast makes maps bfloat16, of 8 bits."""
    shapes = [torch.zeros((), device=images.device).expand(m.shape) for m in maps]
    anchors: Tensor = generator(ImageList(images, [images.shape[-2:]]), shapes)[0]
    return anchors


def middles(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


@contextmanager
def held(modules: Sequence[nn.Module], name: str, value: bool) -> Iterator[None]:
    """Within it, the attribute `name` of these modules (not of those within them) is `value`."""
    before = [getattr(module, name) for module in modules]
    try:
        for module in modules:
            setattr(module, name, value)
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            setattr(module, name, was)
