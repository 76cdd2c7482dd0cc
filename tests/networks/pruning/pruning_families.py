"""Pairs of a teacher and a narrower member of its family, tiny, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet

Pair = Callable[[], tuple[nn.Module, nn.Module]]


def _torchvision_resnet(width: int) -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    network = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=3)
    for name, module in list(network.named_modules()):  # its widths are no options: every layer cut to width/64
        parent = network.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Conv2d):
            inputs = 3 if module.in_channels == 3 else module.in_channels * width // 64
            made = nn.Conv2d(
                inputs,
                module.out_channels * width // 64,
                module.kernel_size[0],
                module.stride[0],
                module.padding[0],
                bias=False,
            )
            setattr(parent, name.rpartition(".")[2], made)
        elif isinstance(module, nn.BatchNorm2d):
            setattr(parent, name.rpartition(".")[2], nn.BatchNorm2d(module.num_features * width // 64))
    network.fc = nn.Linear(512 * width // 64, 3)
    return network


def _mobilenet(width: float) -> nn.Module:
    return torchvision.models.mobilenet_v2(
        num_classes=3, width_mult=width, inverted_residual_setting=[[1, 16, 1, 1], [2, 16, 2, 2], [2, 32, 2, 2]]
    )


def _squeezed(width: int) -> nn.Module:
    """Expansion, depthwise convolution, squeeze-and-excitation, as in MobileNetV3 and EfficientNet."""
    block = torchvision.models.efficientnet.MBConv
    config = torchvision.models.efficientnet.MBConvConfig
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1),
        nn.BatchNorm2d(width),
        nn.SiLU(),
        block(config(2, 3, 1, width, width, 1, 1.0, 1.0), 0.0, nn.BatchNorm2d),
        block(config(2, 3, 2, width, 2 * width, 1, 1.0, 1.0), 0.0, nn.BatchNorm2d),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 3),
    )


class Flattened(nn.Module):
    """A map flattened before a linear layer, as in VGG and LeNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Linear(width * 16, 2 * width)
        self.last = nn.Linear(2 * width, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.norm(self.conv(images)).relu(), 4)
        answer: Tensor = self.last(self.first(x.flatten(1)).relu())
        return answer


class Dense(nn.Module):
    """Maps joined with all maps before them, and with the image, as in DenseNet and ESPNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width * (i + 1) + 3, width, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width * (i + 1) + 3) for i in range(3))
        self.last = nn.Conv2d(4 * width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [self.first(images)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            maps.append(layer(norm(torch.cat([*maps, images], 1)).relu()))
        answer: Tensor = self.last(torch.cat(maps, 1)).mean((2, 3))
        return answer


class Grouped(nn.Module):
    """A convolution in four groups, of `width` channels each, between two others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(4 * width)
        self.grouped = nn.Conv2d(4 * width, 8 * width, 3, padding=1, groups=4)
        self.last = nn.Conv2d(8 * width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.last(self.grouped(self.norm(self.first(images)).relu()).relu()).mean((2, 3))
        return answer


class Heads(nn.Module):
    """Attention of `heads` heads of 4 channels on a stream of 12, and an MLP of `hidden` columns."""

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.places = nn.Parameter(torch.randn(1, 17, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 12 * heads)
        self.proj = nn.Linear(4 * heads, 12)
        self.fc1, self.fc2 = nn.Linear(12, hidden), nn.Linear(hidden, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, 16, 12)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        q, k, v = self.qkv(self.norm1(x)).reshape(len(x), 17, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        attention = nn.functional.softmax(q @ k.transpose(-2, -1) * 0.5, -1)
        x = x + self.proj((attention @ v).transpose(1, 2).flatten(2))
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        answer: Tensor = self.last(x[:, 0])
        return answer


FAMILIES: dict[str, Pair] = {
    "datafree/resnet": lambda: (resnet(3, 14, 8), resnet(3, 14, 4)),
    "torchvision's resnet": lambda: (_torchvision_resnet(16), _torchvision_resnet(8)),
    "torchvision's mobilenet": lambda: (_mobilenet(1.0), _mobilenet(0.5)),
    "squeeze and excitation": lambda: (_squeezed(16), _squeezed(8)),
    "datafree/unet": lambda: (unet(3, 8, 3), unet(3, 4, 3)),
    "datafree/yolov3 tiny": lambda: (yolov3(2, width=0.125), yolov3(2, width=0.0625)),
    "flattened": lambda: (Flattened(8), Flattened(4)),
    "joined maps": lambda: (Dense(6), Dense(3)),
    "groups": lambda: (Grouped(4), Grouped(2)),
    "heads": lambda: (Heads(3, 16), Heads(2, 8)),
}


def made(family: str | Pair) -> tuple[nn.Module, nn.Module]:
    """The pair in eval mode; BatchNorm's tensors are random, as after training."""
    torch.manual_seed(0)
    pair = FAMILIES[family]() if isinstance(family, str) else family()
    for network in pair:
        network.eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
    return pair


def answer(network: nn.Module, images: Tensor) -> Tensor:
    """What a network answers, a detector's heads in one row."""
    with torch.no_grad():
        out = network(images)
    return out if isinstance(out, Tensor) else torch.cat([head.flatten() for head in out.heads])
