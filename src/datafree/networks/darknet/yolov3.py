"""The YOLOv3 family as a detector: tiny, full (Darknet-53, three scales) and SPP, and whatever a Darknet cfg describes.

Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv 1804.02767; the layers are those of yolov3-tiny.cfg,
yolov3.cfg and yolov3-spp.cfg of Darknet. The loss is the one that DIODE makes images with (Chawla et al., WACV 2021).

B images, A anchors of a head, C classes, ny x nx cells of a head, L locations (cells x anchors of all heads), N boxes,
P positives (a box, an anchor and a cell).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.errors import NetworkError
from datafree.networks.darknet.cfg import parse_cfg, read_cfg
from datafree.networks.darknet.layers import Head
from datafree.networks.darknet.network import Darknet
from datafree.networks.detectors import Detector
from datafree.ops.boxes import Labelled, giou_loss
from datafree.ops.predictions import Decoding, Heads, Predictions, described
from datafree.ops.upload import uploaded
from datafree.text import show

Variant = Literal["tiny", "full", "spp"]
Anchors = Sequence[Sequence[float]]  # pairs of width and height, pixels, the smallest first

ANCHORS: dict[str, Anchors] = {  # of COCO at 416 x 416, by k-means
    "tiny": ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319)),
    "full": ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326)),
}
ANCHORS["spp"] = ANCHORS["full"]
GAINS = (3.54, 64.3, 37.4)  # of boxes, objectness, classes: DIODE's, made for 80 classes at 416 x 416 pixels
_FITS = 0.225  # IoU of the sides of an anchor and a box above which the anchor has to find the box
_LARGEST = math.log(1000.0)  # a box is at most so many times its anchor


def yolov3(
    num_classes: int,
    *,
    variant: Variant = "tiny",
    width: float = 1.0,
    anchors: Anchors | None = None,
    channels: int = 3,
    cfg: str | Path | None = None,
    loss_gains: Sequence[float] = GAINS,
) -> YoloDetector:
    """A YOLOv3 detector: images (B, channels, H, W), H and W multiples of 32 -> `Predictions`.

    `variant`: "tiny" (two scales, 8.9 million parameters with 80 classes), "full" (62 million) or "spp" (63 million;
    DIODE's teacher). `width`: all layers' channels are so many times the published ones, in multiples of 8. `anchors`:
    pairs of width and height in pixels, the smallest first, as many for each scale; unset: COCO's, made for 416 x 416.
    `cfg`: a Darknet cfg instead of all this. `loss_gains`: weights of the loss's terms for boxes, objectness and
    classes. Raises NetworkError for values that make no network.
    """
    if len(loss_gains) != 3 or not all(_is_number(gain) and gain >= 0 for gain in loss_gains):
        raise NetworkError(
            f"loss_gains of datafree/yolov3 is {show(loss_gains)}: give three numbers of at least 0, "
            "for boxes, objectness and classes"
        )
    if cfg is None:
        text = cfg_text(num_classes, variant=variant, width=width, anchors=anchors, channels=channels)
        return YoloDetector(Darknet(parse_cfg(text)), loss_gains)
    if width != 1.0 or anchors is not None:
        raise NetworkError("cfg of datafree/yolov3 says what layers and anchors there are: leave out width and anchors")
    sections = read_cfg(Path(cfg))
    try:
        network = Darknet(sections)
    except NetworkError as error:
        raise NetworkError(f"cfg {cfg}: {error}") from error
    for name, found, given in (("classes", network.classes, num_classes), ("channels", network.channels, channels)):
        if found != given:
            raise NetworkError(f"cfg {cfg}: its network has {found} {name}, but {given} are asked for")
    return YoloDetector(network, loss_gains)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class YoloDetector(Detector):
    """A network of Darknet's [yolo] heads, adapted. Its raw heads are (B, A, ny, nx, 5 + C): x, y, w, h, object, C.

    An anchor's sides are pixels, and stay so for images of any size. `loss_gains`: weights of the terms of `loss`.
    """

    backbone = "body"
    network: Darknet

    def __init__(self, network: Darknet, loss_gains: Sequence[float] = GAINS) -> None:
        super().__init__(network)
        self.loss_gains = tuple(float(gain) for gain in loss_gains)
        self.decoding = _decoding(network.heads)  # once, since anchors may come to lie on a GPU

    def forward(self, images: Tensor) -> Predictions:
        """Box centres are sigmoid + cell, in cells; sides are anchors times exp (arXiv 1804.02767, section 2.1).

        Raises NetworkError for images whose sides are no multiples of the network's stride.
        """
        heads, rows, boxes, centres = [], [], [], []
        for raw, head in zip(self.network(images), self.network.heads, strict=True):
            values = raw.float().unflatten(1, (-1, 5 + head.classes)).permute(0, 1, 3, 4, 2)  # (B, A, ny, nx, 5 + C)
            cells = _cells(values)  # (ny, nx, 2)
            heads.append(values)
            rows.append(values[..., 4:].flatten(1, 3))  # (B, ., 1 + C)
            boxes.append(_boxes(values[..., :4], cells, head.anchors[:, None, None], head).flatten(1, 3))
            centres.append(((cells + 0.5) * head.stride).expand(*values.shape[:4], 2).flatten(1, 3))
        logits = torch.cat(rows, 1)  # (B, L, 1 + C)
        return Predictions(
            class_logits=logits[..., 1:],
            scores=logits[..., :1].sigmoid() * logits[..., 1:].sigmoid(),
            boxes=torch.cat(boxes, 1),
            centres=torch.cat(centres, 1),
            heads=tuple(heads),
            loss=self.loss,
            decoding=self.decoding,
        )

    def loss(self, heads: Heads, targets: list[Labelled]) -> Tensor:
        """3.54 * sum_s mean(1 - GIoU) + 64.3 * sum_s mean BCE(object) + 37.4 * sum_s mean BCE(classes): a scalar.

        s are the scales. Every anchor of every scale whose sides have an IoU above 0.225 with a box's is positive in
        the cell that holds the box's centre; the first and third mean are over these (and classes), the second is over
        all cells and anchors. No region is ignored, a positive's objectness is 1. Without a positive only the second
        term is left. DIODE (Chawla et al., WACV 2021), as in its public settings.
        """
        device = heads[0].device
        labels = torch.cat([ids for ids, _ in targets]).to(device)  # (N,)
        boxes = torch.cat([corners for _, corners in targets]).to(device)  # (N, 4)
        image = uploaded([index for index, (ids, _) in enumerate(targets) for _ in ids], device, torch.int64)  # (N,)
        sides, middle = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
        box_gain, object_gain, class_gain = self.loss_gains
        total = heads[0].new_zeros(())
        for values, head in zip(heads, self.network.heads, strict=True):
            n, anchor = torch.nonzero(_side_overlap(sides, head.anchors) > _FITS, as_tuple=True)  # (P,) each
            most = uploaded([values.shape[3] - 1, values.shape[2] - 1], device)
            cell = torch.minimum((middle[n] / head.stride).long(), most).clamp_min(0)  # (P, 2): x, y
            wanted = torch.zeros_like(values[..., 4])
            wanted[image[n], anchor, cell[:, 1], cell[:, 0]] = 1
            total = total + object_gain * F.binary_cross_entropy_with_logits(values[..., 4], wanted)
            if len(n):
                found = values[image[n], anchor, cell[:, 1], cell[:, 0]]  # (P, 5 + C)
                placed = _boxes(found[:, :4], cell, head.anchors[anchor], head)
                total = total + box_gain * giou_loss(placed, boxes[n]).mean()
                classes = F.one_hot(labels[n], head.classes).to(found.dtype)
                total = total + class_gain * F.binary_cross_entropy_with_logits(found[:, 5:], classes)
        return total


def _decoding(heads: Sequence[Head]) -> Decoding:
    """What turns raw heads into boxes, besides their shapes; () where values are none yet (device "meta")."""
    if any(head.anchors.is_meta for head in heads):
        return ()
    anchors = [[[float(f"{side:.6g}") for side in pair] for pair in head.anchors.tolist()] for head in heads]
    return described(
        "yolo", anchors=anchors, strides=[head.stride for head in heads], stretch=[head.stretch for head in heads]
    )


def _cells(values: Tensor) -> Tensor:
    """(ny, nx, 2): x and y of each cell of a head (B, A, ny, nx, ...), counted from 0."""
    down = torch.arange(values.shape[2], device=values.device)
    right = torch.arange(values.shape[3], device=values.device)
    y, x = torch.meshgrid(down, right, indexing="ij")
    return torch.stack([x, y], -1)


def _boxes(values: Tensor, cells: Tensor, anchors: Tensor, head: Head) -> Tensor:
    """(..., 4) corners in pixels of raw x, y, w, h (..., 4) in cells (..., 2) for anchors (..., 2)."""
    inside = torch.sigmoid(values[..., :2]) * head.stretch - (head.stretch - 1) / 2
    centre = (inside + cells) * head.stride
    half = values[..., 2:].clamp_max(_LARGEST).exp() * anchors / 2
    return torch.cat([centre - half, centre + half], -1)


def _side_overlap(sides: Tensor, anchors: Tensor) -> Tensor:
    """(N, A) IoU of boxes of sides (N, 2) and anchors (A, 2) with a common centre."""
    shared = torch.minimum(sides[:, None], anchors[None]).prod(-1)
    return shared / (sides.prod(-1)[:, None] + anchors.prod(-1)[None] - shared)


def cfg_text(
    num_classes: int,
    *,
    variant: Variant = "tiny",
    width: float = 1.0,
    anchors: Anchors | None = None,
    channels: int = 3,
) -> str:
    """The Darknet cfg of a `yolov3`, which makes its .weights file one that Darknet's readers understand.

    At `width` 1, with 3 channels and the anchors unset, its layers are those of the published cfg. Raises NetworkError.
    """
    for name, value in (("num_classes", num_classes), ("channels", channels)):
        if not isinstance(value, int) or value < 1:
            raise NetworkError(f"{name} of datafree/yolov3 is {show(value)}: give a whole number of at least 1")
    if variant not in ANCHORS:
        raise NetworkError(f"variant of datafree/yolov3 is {show(variant)}: give {', '.join(ANCHORS)}")
    if not _is_number(width) or not 0 < width <= 16:
        raise NetworkError(f"width of datafree/yolov3 is {show(width)}: give a number above 0, at most 16")
    scales = 2 if variant == "tiny" else 3
    pairs = _checked(ANCHORS[variant] if anchors is None else anchors, scales)
    each = len(pairs) // scales

    def conv(filters: int, size: int, stride: int = 1) -> str:
        scaled = max(8, round(filters * width / 8) * 8)
        options = f"filters={scaled}\nsize={size}\nstride={stride}\npad=1\nactivation=leaky\n"
        return f"[convolutional]\nbatch_normalize=1\n{options}"

    def squeezes(filters: int, count: int) -> str:
        return (conv(filters, 1) + conv(2 * filters, 3)) * count

    def head(scale: int) -> str:
        """The answer at a scale, 0 the coarsest, which has the largest anchors."""
        first = (scales - 1 - scale) * each
        mask = ",".join(str(first + index) for index in range(each))
        listed = ", ".join(f"{w:g},{h:g}" for w, h in pairs)
        raw = f"[convolutional]\nsize=1\nstride=1\npad=1\nfilters={each * (5 + num_classes)}\nactivation=linear\n"
        return f"{raw}[yolo]\nmask={mask}\nanchors={listed}\nclasses={num_classes}\nnum={len(pairs)}\n"

    def finer(filters: int, layer: int) -> str:
        """Go back before the last head's convolutions, double the size, join with the body's `layer`."""
        return f"[route]\nlayers=-4\n{conv(filters, 1)}[upsample]\nstride=2\n[route]\nlayers=-1,{layer}\n"

    text = f"[net]\nwidth=416\nheight=416\nchannels={channels}\n"
    if variant == "tiny":
        for filters, stride in ((16, 2), (32, 2), (64, 2), (128, 2), (256, 2), (512, 1)):
            text += conv(filters, 3) + f"[maxpool]\nsize=2\nstride={stride}\n"
        text += conv(1024, 3) + squeezes(256, 1) + head(0)
        return text + finer(128, 8) + conv(256, 3) + head(1)
    text += conv(32, 3)
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):  # Darknet-53
        text += conv(filters, 3, 2) + (squeezes(filters // 2, 1) + "[shortcut]\nfrom=-3\nactivation=linear\n") * blocks
    if variant == "spp":  # maxima of 5, 9 and 13 cells beside the map itself
        text += squeezes(512, 1) + conv(512, 1)
        text += "[maxpool]\nstride=1\nsize=5\n[route]\nlayers=-2\n[maxpool]\nstride=1\nsize=9\n[route]\nlayers=-4\n"
        text += "[maxpool]\nstride=1\nsize=13\n[route]\nlayers=-1,-3,-5,-6\n"
        text += squeezes(512, 2) + head(0)
    else:
        text += squeezes(512, 3) + head(0)
    text += finer(256, 61) + squeezes(256, 3) + head(1)
    return text + finer(128, 36) + squeezes(128, 3) + head(2)


def _checked(anchors: Anchors, scales: int) -> list[tuple[float, float]]:
    """The pairs, if they are some, as many for each scale. Raises NetworkError."""
    pairs = [tuple(pair) for pair in anchors] if all(isinstance(pair, Sequence) for pair in anchors) else []
    good = all(len(pair) == 2 and all(_is_number(side) and 0 < side <= 100_000 for side in pair) for pair in pairs)
    if not good or not pairs or len(pairs) % scales:
        raise NetworkError(
            f"anchors of datafree/yolov3 is {show(anchors)}: give pairs of width and height in pixels, a multiple of "
            f"{scales} of them, the smallest first"
        )
    return [(pair[0], pair[1]) for pair in pairs]
