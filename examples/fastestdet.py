"""A detector of one's own behind `datafree`'s one form: FastestDet, a real one, pretrained on COCO by its author.

Two parts. The first is what an owner has already: the network and its training loss, which know nothing of datafree.
The second, `FastestDetDetector`, is all that datafree asks for. With this folder as the current one, a recipe names it:

    teacher:
      network: fastestdet:make
      weights: $DATAFREE_DATA/weights/fastestdet-coco.safetensors
      channel_order: bgr

FastestDet is by xuehao.ma (github.com/dog-qiuqiu/FastestDet, BSD-3-Clause). Network, decoding and loss are written anew
from how it works; the names of layers are its own, so that its weights fit.

B images, C classes, h x w cells of 16 x 16 pixels, L = h * w locations, T targets, N pairs of a target and a cell.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.detectors import Detector
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions, described

# ---- Part 1: the network and its loss -------------------------------------------------------------------------------

Raw = tuple[Tensor, Tensor, Tensor]  # objectness, box, classes


class FastestDet(nn.Module):
    """Images (B, 3, H, W), BGR in [0, 1] -> raw objectness (B, 1, h, w), box (B, 4, h, w) and classes (B, C, h, w).

    H and W are multiples of 32. A ShuffleNetV2 whose last three stages are brought to one grid of h x w = H/16 x W/16.
    Raw: before the sigmoid of the objectness, the tanh and sigmoid of the box and the softmax of the classes.
    """

    def __init__(self, num_classes: int = 80, width: float = 1.0) -> None:
        super().__init__()
        stem, *maps = (2 * round(width * channels / 2) for channels in (24, 48, 96, 192))  # halves are told apart
        self.backbone = ShuffleNetV2(stem, maps)
        self.SPP = Pyramid(sum(maps), maps[1])
        self.detect_head = DetectHead(maps[1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # all are followed by BatchNorm and have no bias
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Raw:
        fine, middle, coarse = self.backbone(images)
        fine = F.avg_pool2d(fine, 3, stride=2, padding=1)
        coarse = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        heads: Raw = self.detect_head(self.SPP(torch.cat([fine, middle, coarse], 1)))
        return heads


class ShuffleNetV2(nn.Module):
    """Images (B, 3, H, W) -> maps of 1/8, 1/16 and 1/32, `channels` of each (Ma et al., arXiv 1807.11164)."""

    def __init__(self, stem: int, channels: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.first_conv = nn.Sequential(*_conv(3, stem, 3, stride=2), nn.ReLU(inplace=True))
        self.stage2 = _stage(stem, fine, 4)
        self.stage3 = _stage(fine, middle, 8)
        self.stage4 = _stage(middle, coarse, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(self.first_conv(images), 3, stride=2, padding=1)  # (B, stem, H / 4, W / 4)
        fine = self.stage2(x)
        middle = self.stage3(fine)
        return fine, middle, self.stage4(middle)


class Unit(nn.Module):
    """ShuffleNetV2's unit: one half of the channels goes through unchanged, or with stride 2 both through a branch."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        inner = inputs if stride == 2 else half  # of the main branch
        self.branch_main = nn.Sequential(
            *(*_conv(inner, half, 1), nn.ReLU(inplace=True)),
            *_conv(half, half, 3, stride=stride, groups=half),
            *(*_conv(half, outputs - inner, 1), nn.ReLU(inplace=True)),
        )
        self.branch_proj = None
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *_conv(inputs, inputs, 3, stride=2, groups=inputs),
                *(*_conv(inputs, inputs, 1), nn.ReLU(inplace=True)),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is not None:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        # The shuffle: even channels are kept, odd ones go through the branch.
        return torch.cat([x[:, ::2], self.branch_main(x[:, 1::2])], 1)


class Pyramid(nn.Module):
    """Depthwise stacks of one, two and three 5 x 5 convolutions side by side, added to what went in."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.Conv1x1 = _named(conv1x1=nn.Sequential(*_conv(inputs, channels, 1), nn.ReLU(inplace=True)))
        self.S1, self.S2, self.S3 = (_stack(channels, depth) for depth in (1, 2, 3))
        self.output = nn.Sequential(*_conv(3 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return F.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class DetectHead(nn.Module):
    """Raw objectness, box and classes of a map (B, channels, h, w)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1x1 = _named(conv1x1=nn.Sequential(*_conv(channels, channels, 1), nn.ReLU(inplace=True)))
        self.obj_layers, self.reg_layers, self.cls_layers = (_head(channels, n) for n in (1, 4, num_classes))

    def forward(self, x: Tensor) -> Raw:
        x = self.conv1x1(x)
        return self.obj_layers(x), self.reg_layers(x), self.cls_layers(x)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def _stage(inputs: int, outputs: int, repeats: int) -> nn.Sequential:
    return nn.Sequential(Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(repeats - 1)))


def _stack(channels: int, depth: int) -> nn.Sequential:
    pairs = [(*_conv(channels, channels, 5, groups=channels), nn.ReLU(inplace=True)) for _ in range(depth)]
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


def _head(channels: int, outputs: int) -> nn.Sequential:
    layers = [*_conv(channels, channels, 5, groups=channels), nn.ReLU(inplace=True), *_conv(channels, outputs, 1)]
    return _named(conv5x5=nn.Sequential(*layers))


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def fastestdet_loss(heads: Sequence[Tensor], targets: Tensor) -> Tensor:
    """FastestDet's training loss, 8 * box + 16 * objectness + class: a scalar.

    `targets` (T, 6), T >= 0: index of the image, class, centre x, y, width and height as shares of the image's.
    A target is paired with the four cells whose corners surround its centre; of all pairs of a batch those count whose
    SIoU is at least the mean. Box is their mean 1 - SIoU, class their mean cross-entropy. Objectness is a smooth L1
    distance to the SIoU in their cells and to 0 in all others, which weigh 3/4 each; in a mean over an image's cells
    its paired ones weigh 1/4 together. The SIoU takes a gradient from there too, as published.
    What the published form leaves open is settled here: "at least", where it says "above" and has NaN if all are equal
    or there is one pair only; and a cell that is in several pairs should answer the highest SIoU.
    """
    objectness, box, classes = heads
    count, _, height, width = objectness.shape
    size = torch.tensor([width, height], device=box.device)
    corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=box.device)
    near = (targets[:, 2:4] * size).long() + corners[:, None]  # (4, T, 2): cells, x before y
    inside = (near < size).all(-1)
    pairs = targets.expand(4, -1, -1)[inside]  # (N, 6)
    (right, down), image, label = near[inside].T, pairs[:, 0].long(), pairs[:, 1].long()

    raw = box[image, :, down, right]  # (N, 4)
    middle, extent = raw[:, :2].tanh() + torch.stack([right, down], 1), raw[:, 2:].sigmoid() * size
    fit = siou(torch.cat([middle, extent], 1), pairs[:, 2:] * size.repeat(2))  # (N,)
    best = fit >= fit.mean() - 1e-6  # the mean of equal numbers may be off by a rounding
    fit, image, label, down, right = fit[best], image[best], label[best], down[best], right[best]
    number = max(len(fit), 1)
    box_loss = (1 - fit).sum() / number
    class_loss = F.cross_entropy(classes[image, :, down, right], label, reduction="sum") / number

    place = (image * height + down) * width + right
    wanted = objectness.new_zeros(count * height * width)
    wanted = wanted.scatter_reduce(0, place, fit, "amax", include_self=False)
    weight = torch.full_like(wanted, 0.75)
    weight[place] = 0.25 * height * width / image.bincount(minlength=count)[image].to(weight)
    objectness_loss = (weight * F.smooth_l1_loss(objectness.sigmoid().flatten(), wanted, reduction="none")).mean()
    return 8 * box_loss + 16 * objectness_loss + class_loss


def siou(ours: Tensor, theirs: Tensor) -> Tensor:
    """(N,) IoU of boxes (N, 4) of centre, width and height with others, less SIoU's costs of distance and shape.

    Gevorgyan, arXiv 2205.12740: IoU - (distance + shape) / 2, at most 1. The angle's cost, sin(2 arcsin s), is written
    as 2 |x| |y| / (x^2 + y^2), which has a gradient also where the centres are the same.
    """
    (low, high), (least, most) = ((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2) for box in (ours, theirs))
    shared = (torch.minimum(high, most) - torch.maximum(low, least)).clamp_min(0).prod(1)
    union = ours[:, 2:].prod(1) + theirs[:, 2:].prod(1) - shared
    around = torch.maximum(high, most) - torch.minimum(low, least)  # the box around both
    apart = theirs[:, :2] - ours[:, :2]
    angle = 2 * apart.abs().prod(1) / (apart.square().sum(1) + 1e-9)
    distance = (1 - torch.exp((angle[:, None] - 2) * (apart / around).square())).sum(1)
    stretch = (ours[:, 2:] - theirs[:, 2:]).abs() / torch.maximum(ours[:, 2:], theirs[:, 2:])
    shape = (1 - torch.exp(-stretch)).pow(4).sum(1)
    return shared / union - (distance + shape) / 2


# ---- Part 2: the adapter, all that datafree needs -------------------------------------------------------------------

CELL = 16  # pixels of an image to a cell


class FastestDetDetector(Detector):
    """FastestDet's raw heads as `Predictions`."""

    backbone = "backbone"

    def forward(self, images: Tensor) -> Predictions:
        height, width = images.shape[-2:]
        if height % 32 or width % 32:
            raise NetworkError(f"FastestDet takes multiples of 32 pixels, not {height} x {width}: set input_size")
        heads = tuple(head.float() for head in self.network(images))
        objectness, box, classes = (head.flatten(2).transpose(1, 2) for head in heads)  # (B, L, 1 or 4 or C)
        down, right = (CELL * torch.arange(side // CELL, device=images.device) for side in (height, width))
        centres = torch.cartesian_prod(down, right).flip(1).float()  # (L, 2): each tanh counts from its cell's corner
        middle = centres + CELL * box[..., :2].tanh()
        half = box[..., 2:].sigmoid() * torch.tensor([width, height], device=images.device) / 2
        # objectness^0.6 * class^0.4, through logarithms: a power's gradient is infinite at 0. As published, a location
        # is of its surest class alone; with the power of 0.4, an unlikely second one would still have a high score.
        scores = torch.exp(0.6 * F.logsigmoid(objectness) + 0.4 * F.log_softmax(classes, -1))
        scores = scores * F.one_hot(classes.argmax(-1), classes.shape[-1])
        return Predictions(
            class_logits=classes,
            scores=scores,
            boxes=torch.cat([middle - half, middle + half], -1),
            centres=centres.expand(images.shape[0], -1, -1),
            heads=heads,
            loss=self.loss,
            decoding=described("FastestDet", cell=CELL),
        )

    def loss(self, heads: Heads, targets: list[Labelled]) -> Tensor:
        height, width = heads[0].shape[-2:]
        size = CELL * torch.tensor([width, height], device=heads[0].device)
        rows = []
        for index, (labels, boxes) in enumerate(targets):
            low, high = boxes[:, :2] / size, boxes[:, 2:] / size
            image = torch.full_like(labels, index)
            rows.append(torch.cat([torch.stack([image, labels], 1), (low + high) / 2, high - low], 1))
        return fastestdet_loss(heads, torch.cat(rows))


def make(num_classes: int = 80, width: float = 1.0) -> FastestDetDetector:
    """FastestDet, adapted, not trained: kaiming-normal convolutions, BatchNorm that changes nothing yet.

    `width`: its channels are so many times those of its author, 24, 48, 96 and 192.
    """
    if not width > 0 or round(12 * width) < 1:
        raise NetworkError(f"width of fastestdet is {width!r}: give a share of the published channels, such as 0.5")
    return FastestDetDetector(FastestDet(num_classes, width))
