"""Small classifiers for small images: the CIFAR ResNets of He et al., arXiv 1512.03385, section 4.2.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import NetworkError


def resnet(num_classes: int, depth: int = 20, width: int = 16, stride: int = 1, channels: int = 3) -> nn.Module:
    """A CIFAR ResNet: (B, channels, H, W) -> logits (B, C), for any H and W of at least 8 pixels.

    Three stages of (depth - 2) / 6 basic blocks with `width`, 2 and 4 times `width` channels, at the full, half and
    quarter resolution after it; shortcuts without parameters (option A). Its parameters are named as in the widely used
    public weights of these networks, which load as they are. `stride` of the first convolution, 1 in the paper: 2
    quarters the cost. Raises NetworkError for values that make no network.
    """
    for name, value in (("num_classes", num_classes), ("width", width), ("channels", channels)):
        if not isinstance(value, int) or value < 1:
            raise NetworkError(f"{name} of datafree/resnet is {value!r}: give a whole number of at least 1")
    if stride not in (1, 2, 4):
        raise NetworkError(f"stride of datafree/resnet is {stride!r}: give 1, 2 or 4")
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise NetworkError(f"depth of datafree/resnet is {depth!r}: give 8, 14, 20, 26, 32, 44, 56 or another 6 n + 2")
    return ResNet(num_classes, blocks=(depth - 2) // 6, width=width, stride=stride, channels=channels)


class ResNet(nn.Module):
    """See `resnet`. `blocks`: of each stage. `stride`: of the first convolution. `channels`: of the images."""

    def __init__(self, num_classes: int, blocks: int, width: int, stride: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3(channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 4 * width, ceil(H / 4), ceil(W / 4))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut drops every other pixel and pads channels with zeros where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.padding:
            before = self.padding // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.padding - before))
        return F.relu(out + x)


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
