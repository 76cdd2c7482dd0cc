"""A network of your own, by import path: ESPNet, whose public weights for CamVid load as they are.

    cd examples && datafree inspect espnet:make --weights espnet.safetensors --size 256x344

    teacher:
      network: espnet:make                       # this file is beside you; nothing is registered anywhere
      weights: espnet.safetensors
      channel_order: bgr                   # it was trained on B, G, R in 0..255, less (110.331, 108.409, 105.033),
      mean: [0.41189, 0.42513, 0.43267]    # over (72.126, 72.691, 69.904), then over 255; here all that is said
      std: [69.904, 72.691, 72.126]        # for R, G, B in 0..1
      input_size: [256, 344]

All a network needs is to answer logits of the images' size. ESPNet is by Mehta et al., ECCV 2018 (arXiv 1803.06815;
code and weights MIT, (c) 2018 Sachin Mehta); here with p = 2, q = 8, in the older form in which the last join takes all
19 channels of the first level. Layers are named as in its weights.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make(classes: int = 12) -> nn.Module:
    """ESPNet, not trained: images (B, 3, H, W), H and W multiples of 8 -> logits (B, C, H, W)."""
    return ESPNet(classes)


class ESPNet(nn.Module):
    """The encoder, and a decoder that joins its levels from the coarsest to the finest."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(classes)
        self.br = _norm(classes)
        self.up_l3 = nn.Sequential(_double(classes))
        self.level3_C = _Conv(131, classes, 1)
        self.combine_l2_l3 = nn.Sequential(_Active(2 * classes), Spatial(2 * classes, classes))
        self.up_l2 = nn.Sequential(_double(classes), _Active(classes))
        self.conv = _ConvActive(19 + classes, classes)
        self.classifier = _double(classes)

    def forward(self, images: Tensor) -> Tensor:
        fine, middle, coarse = self.encoder(images)
        x = self.up_l3(self.br(self.encoder.classifier(coarse)))  # (B, C, H / 4, W / 4)
        x = self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(middle), x], 1)))  # (B, C, H / 2, W / 2)
        answer: Tensor = self.classifier(self.conv(torch.cat([x, fine], 1)))
        return answer


class Encoder(nn.Module):
    """Three levels, at a half, a quarter and an eighth: 19, 131 and 256 channels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.level1 = _ConvActive(3, 16, stride=2)
        self.b1 = _Active(19)
        self.level2_0 = Spatial(19, 64, down=True)
        self.level2 = nn.ModuleList(Spatial(64, 64, residual=True) for _ in range(2))
        self.b2 = _Active(131)
        self.level3_0 = Spatial(131, 128, down=True)
        self.level3 = nn.ModuleList(Spatial(128, 128, residual=True) for _ in range(8))
        self.b3 = _Active(256)
        self.classifier = _Conv(256, classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = F.avg_pool2d(images, 3, stride=2, padding=1)
        quarter = F.avg_pool2d(half, 3, stride=2, padding=1)
        fine = self.b1(torch.cat([self.level1(images), half], 1))
        x = first = self.level2_0(fine)
        for block in self.level2:
            x = block(x)
        middle = self.b2(torch.cat([x, first, quarter], 1))
        x = first = self.level3_0(middle)
        for block in self.level3:
            x = block(x)
        return fine, middle, self.b3(torch.cat([first, x], 1))


class Spatial(nn.Module):
    """ESP: channels cut down, then convolutions of growing dilation side by side; `down` halves the resolution."""

    def __init__(self, inputs: int, outputs: int, *, down: bool = False, residual: bool = False) -> None:
        super().__init__()
        part = outputs // 5
        self.residual = residual
        self.c1 = _Conv(inputs, part, 3, stride=2) if down else _Conv(inputs, part, 1)
        self.d1 = _Conv(part, outputs - 4 * part, 3)
        self.d2, self.d4, self.d8, self.d16 = (_Conv(part, part, 3, dilation=d) for d in (2, 4, 8, 16))
        self.bn = _norm(outputs) if down else _Active(outputs)
        self.act = nn.PReLU(outputs) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        small = self.c1(x)
        parts, total = [self.d1(small)], torch.zeros_like(small)
        for wider in (self.d2, self.d4, self.d8, self.d16):  # sums, against the grid that dilation leaves
            total = total + wider(small)
            parts.append(total)
        joined = torch.cat(parts, 1)
        answer: Tensor = self.act(self.bn(x + joined if self.residual else joined))
        return answer


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = kernel // 2 * dilation
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.conv(x)
        return answer


class _Active(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = _norm(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.act(self.bn(x))
        return answer


class _ConvActive(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = _norm(outputs)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.act(self.bn(self.conv(x)))
        return answer


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)
