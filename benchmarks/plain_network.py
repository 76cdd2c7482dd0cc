"""A small classifier without normalisation layers: the teacher whose images no statistics tell of.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def plain(num_classes: int, width: int = 16, channels: int = 3) -> nn.Module:
    """Four 3 x 3 convolutions with biases, 1, 2, 2 and 4 times `width` channels: (B, channels, H, W) -> logits (B, C).

    Named by recipes as `plain_network:plain`; H and W of at least 4 pixels.
    """
    return Plain(num_classes, width, channels)


class Plain(nn.Module):
    """See `plain`."""

    def __init__(self, num_classes: int, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)  # (B, width, H / 2, W / 2)
        x = F.relu(self.conv3(F.relu(self.conv2(x))))
        x = F.relu(self.conv4(F.max_pool2d(x, 2)))  # (B, 4 * width, H / 4, W / 4)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
