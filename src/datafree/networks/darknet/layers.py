"""The layers of Darknet's networks that torch has not.

B images, K channels, A anchors of a head, C classes, ny x nx cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnevenMaxPool(nn.Module):
    """A pool with padding of its own on each side, inside it: as a layer, what is filled in would pass for features."""

    def __init__(self, size: int, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.size, self.stride, self.filled = size, stride, (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, self.filled, value=-math.inf), self.size, self.stride)


class Route(nn.Module):
    """Maps put behind one another; with `groups`, of each map only part `group_id` of so many equal ones."""

    def __init__(self, groups: int, group_id: int) -> None:
        super().__init__()
        self.groups = groups
        self.group_id = group_id

    def forward(self, *maps: Tensor) -> Tensor:
        parts = [x.chunk(self.groups, 1)[self.group_id] for x in maps] if self.groups > 1 else list(maps)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Shortcut(nn.Module):
    """The sum of two maps."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        added: Tensor = self.activation(x + other)
        return added


class Head(nn.Module):
    """What a [yolo] section says about the raw tensor (B, A * (5 + C), ny, nx) before it, which it hands on."""

    anchors: Tensor  # (A, 2): width and height, pixels

    def __init__(self, stride: int, classes: int, anchors: Sequence[Sequence[float]], stretch: float) -> None:
        super().__init__()
        self.stride = stride  # pixels of a cell
        self.classes = classes
        self.stretch = stretch  # scale_x_y: the sigmoid of a centre is stretched by it about 1/2 (YOLOv4; else 1)
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        return raw
