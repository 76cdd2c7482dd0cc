"""torchvision's detectors as `Detector`s: SSD and SSDLite, FCOS, RetinaNet, Faster R-CNN.

A model's own `transform` is passed by: resizing, mean and std are `Normalized`'s business. Only its padding is kept
(zeros at the right and the bottom, to a multiple of 32 pixels, for SSD none), since the anchors of a feature pyramid
lie where they should only on images of such sizes.

torchvision counts background as class 0: our class c is its label c + 1, and a model for C classes has C + 1 columns.

B images, L locations, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from datafree.errors import NetworkError
from datafree.networks.detectors import Detector
from datafree.networks.torchvision_parts import anchors_of, as_torchvision, features_of, middles, padded_images
from datafree.networks.torchvision_rcnn import FasterRCNNDetector
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Decoding, Heads, Predictions, described

_Losses = Callable[[list[dict[str, Tensor]], dict[str, Tensor], list[Tensor]], dict[str, Tensor]]


def adapt(network: nn.Module) -> Detector:
    """A torchvision SSD, SSDLite, FCOS, RetinaNet or Faster R-CNN (also one built of their parts) as a `Detector`.

    Raises NetworkError for any other network.
    """
    if isinstance(network, (MaskRCNN, KeypointRCNN)):
        raise NetworkError(
            f"a {type(network).__name__} learns more than boxes, which nothing here could teach it; take a Faster R-CNN"
        )
    for kind, adapter in _ADAPTERS.items():
        if isinstance(network, kind):
            return adapter(network)
    raise NetworkError(f"a {type(network).__name__} is none of torchvision's SSD, FCOS, RetinaNet and FasterRCNN")


def is_torchvision_detector(network: nn.Module) -> bool:
    """Whether `network` is a bare torchvision detection model."""
    return isinstance(network, tuple(_ADAPTERS))


@final
class SSDDetector(Detector):
    """SSD and SSDLite: softmax over the classes and background. Heads: box deltas (B, L, 4), logits (B, L, C + 1)."""

    backbone = "backbone"

    def forward(self, images: Tensor) -> Predictions:
        network: Any = self.network
        outputs, anchors, _, decoding = _one_stage("SSD", network, images)
        boxes = _decoded(network.box_coder, outputs["bbox_regression"], anchors)
        return _predictions(outputs, anchors, outputs["cls_logits"].softmax(-1), boxes, self._losses, decoding)

    def _losses(
        self, targets: list[dict[str, Tensor]], outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        network: Any = self.network
        nothing = torch.full((len(anchors[0]),), -1, dtype=torch.int64, device=anchors[0].device)
        found = [target["boxes"] for target in targets]
        matched = [network.proposal_matcher(box_iou(b, anchors[0])) if len(b) else nothing for b in found]
        return dict(network.compute_loss(targets, outputs, anchors, matched))


@final
class RetinaNetDetector(Detector):
    """RetinaNet: a sigmoid for each class. Heads: logits (B, L, C + 1), the first column unused, deltas (B, L, 4)."""

    backbone = "backbone"

    def forward(self, images: Tensor) -> Predictions:
        network: Any = self.network
        outputs, anchors, _, decoding = _one_stage("RetinaNet", network, images)
        boxes = _decoded(network.box_coder, outputs["bbox_regression"], anchors)
        return _predictions(outputs, anchors, outputs["cls_logits"].sigmoid(), boxes, network.compute_loss, decoding)


@final
class FCOSDetector(Detector):
    """FCOS: a sigmoid for each class, and how central a point is to its box.

    Heads: logits (B, L, C + 1), the first column unused, distances to the four sides (B, L, 4), centre-ness (B, L, 1).
    """

    backbone = "backbone"

    def forward(self, images: Tensor) -> Predictions:
        network: Any = self.network
        outputs, anchors, cells, decoding = _one_stage("FCOS", network, images)
        boxes = network.box_coder.decode(outputs["bbox_regression"], anchors.expand_as(outputs["bbox_regression"]))
        # sqrt(sigmoid(class) * sigmoid(centre-ness)), by logarithms: the root's slope at a product of 0 is infinite
        sure = (F.logsigmoid(outputs["cls_logits"]) + F.logsigmoid(outputs["bbox_ctrness"])) / 2
        losses = partial(network.compute_loss, num_anchors_per_level=cells)
        return _predictions(outputs, anchors, sure.exp(), boxes, losses, decoding)


_ADAPTERS: dict[type[nn.Module], Callable[[nn.Module], Detector]] = {
    SSD: SSDDetector,
    FCOS: FCOSDetector,
    RetinaNet: RetinaNetDetector,
    FasterRCNN: FasterRCNNDetector,
}


def _one_stage(family: str, network: Any, images: Tensor) -> tuple[dict[str, Tensor], Tensor, list[int], Decoding]:
    """A one-stage model's raw outputs by name (B, L, ...), anchors (L, 4), how many cells a level has, and decoding."""
    padded = padded_images(network, images)
    maps = list(features_of(network, padded).values())
    outputs = {name: values.float() for name, values in network.head(maps).items()}
    strides = [(padded.shape[-2] / m.shape[-2], padded.shape[-1] / m.shape[-1]) for m in maps]
    decoding = described(family, strides=strides, anchors=network.anchor_generator, box_coder=network.box_coder)
    return outputs, anchors_of(network.anchor_generator, padded, maps), [m[0, 0].numel() for m in maps], decoding


def _predictions(
    outputs: Mapping[str, Tensor], anchors: Tensor, scores: Tensor, boxes: Tensor, losses: _Losses, decoding: Decoding
) -> Predictions:
    """A one-stage model's answer. `scores` (B, L, C + 1) have background's column, or the unused one, still."""
    names = tuple(outputs)

    def loss(heads: Heads, targets: list[Labelled]) -> Tensor:
        terms = losses(as_torchvision(targets), dict(zip(names, heads, strict=True)), [anchors] * len(targets))
        return torch.stack(list(terms.values())).sum()

    return Predictions(
        class_logits=outputs["cls_logits"][..., 1:],
        scores=scores[..., 1:],
        boxes=boxes,
        centres=middles(anchors).expand(boxes.shape[0], -1, -1),
        heads=tuple(outputs.values()),
        loss=loss,
        decoding=decoding,
    )


def _decoded(coder: Any, deltas: Tensor, anchors: Tensor) -> Tensor:
    """(B, L, 4) boxes of deltas (B, L, 4); the coder bounds their sides."""
    boxes: Tensor = coder.decode_single(deltas.flatten(0, 1), anchors.repeat(deltas.shape[0], 1))
    return boxes.view_as(deltas)
