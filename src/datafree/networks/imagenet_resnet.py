"""The ImageNet ResNets of He et al., arXiv 1512.03385, table 1, of any width: students of torchvision's and timm's.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.text import show

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # by depth


def imagenet_resnet(num_classes: int, depth: int = 18, width: int = 64, channels: int = 3) -> nn.Module:
    """An ImageNet ResNet: (B, channels, H, W) -> logits (B, C), for any H and W of at least 32 pixels.

    Four stages at 1/4, 1/8, 1/16 and 1/32 of the resolution with `width` (64 in the paper), 2, 4 and 8 times `width`
    channels: basic blocks at depth 18 and 34, else bottlenecks, whose ends have four times as many. Its tensors are
    named as torchvision's and timm's `resnet18` and so on, whose weights load as they are; as there, a bottleneck's
    stride is that of its 3x3 convolution. Raises NetworkError for values that make no network.
    """
    for name, value in (("num_classes", num_classes), ("width", width), ("channels", channels)):
        if not isinstance(value, int) or value < 1:
            raise NetworkError(f"{name} of datafree/imagenet_resnet is {show(value)}: give a whole number above 0")
    if depth not in BLOCKS:
        known = ", ".join(map(str, BLOCKS))
        raise NetworkError(f"depth of datafree/imagenet_resnet is {show(depth)}: give one of {known}")
    return ImageNetResNet(num_classes, BLOCKS[depth], bottlenecks=depth >= 50, width=width, channels=channels)


class ImageNetResNet(nn.Module):
    """See `imagenet_resnet`. `blocks`: of each stage. `channels`: of the images."""

    def __init__(
        self, num_classes: int, blocks: tuple[int, int, int, int], bottlenecks: bool, width: int, channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        ends = [width * 2**stage * (4 if bottlenecks else 1) for stage in range(4)]
        for stage, (inputs, outputs, count) in enumerate(zip([width, *ends], ends, blocks, strict=False)):
            stride = 1 if stage == 0 else 2
            made = [
                Block(inputs if index == 0 else outputs, outputs, stride if index == 0 else 1, bottlenecks)
                for index in range(count)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(ends[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)  # at last (B, 8 * width or 32 * width, H / 32, W / 32)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1; where shapes differ, the shortcut is a 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        middle = outputs // 4 if bottleneck else outputs
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        sides = [inputs, *[middle] * (len(kernels) - 1), outputs]
        for index, kernel in enumerate(kernels):
            step = stride if index == (1 if bottleneck else 0) else 1
            conv = nn.Conv2d(sides[index], sides[index + 1], kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(sides[index + 1]))
        self.count = len(kernels)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index in range(1, self.count + 1):
            out = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(out))
            if index < self.count:
                out = F.relu(out)
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(out + shortcut)
