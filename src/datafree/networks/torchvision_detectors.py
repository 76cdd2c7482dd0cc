"""torchvision's detectors as `Detector`s: SSD and SSDLite, FCOS, RetinaNet, Faster R-CNN.

A model's own `transform` is passed by: resizing, mean and std are `Normalized`'s business. Only its padding is kept
(zeros at the right and the bottom, to a multiple of 32 pixels, for SSD none), since the anchors of a feature pyramid
lie where they should only on images of such sizes.

torchvision counts background as class 0: our class c is its label c + 1, and a model for C classes has C + 1 columns.

B images, L locations, C classes, P proposals of an image, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from datafree.errors import NetworkError
from datafree.networks.detectors import Detector
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


@dataclass(frozen=True)
class _Frame:
    """What the two stages of a Faster R-CNN know of the images besides their heads."""

    names: tuple[str, ...]  # of the feature maps
    size: torch.Size  # (height, width) of the images
    padded: torch.Size  # (height, width) with the padding
    anchors: Tensor  # of one image, (A, 4)


@final
class FasterRCNNDetector(Detector):
    """Faster R-CNN, whose locations are pairs of a proposal and a class, since each class has a box of its own there.

    Of the P x C pairs of an image, the P surest and each class's surest are answered: L = P + C (or P x C, if that is
    less), the same for every image. `class_logits` are those of the proposal, `scores` are 0 but for the pair's class.
    P is what the model keeps for testing, in train mode too; an image with fewer has pairs of score 0 without extent.

    Heads: objectness (B, anchors, h, w) and deltas (B, 4 anchors, h, w) of each level, then the feature maps. They fix
    the first stage only: matching them teaches the second nothing. `loss` runs both, with the model's training numbers,
    and draws the anchors and proposals to learn from by torch's global generator. In train mode the statistics of a
    BatchNorm in the second stage move in `loss` alone, as they do in the model's own training.
    """

    backbone = "backbone"

    def forward(self, images: Tensor) -> Predictions:
        network: Any = self.network
        padded = _padded(network, images)
        features = _features(network, padded)
        maps = list(features.values())
        objectness, deltas = network.rpn.head(maps)
        heads = tuple(head.float() for head in (*objectness, *deltas, *maps))
        frame = _Frame(
            names=tuple(features),
            size=images.shape[-2:],
            padded=padded.shape[-2:],
            anchors=_anchors(network.rpn.anchor_generator, padded, maps),
        )
        with _held([network.rpn], "training", False):  # the first stage reads there how many proposals to keep
            *_, proposals = self._first_stage(heads, frame)
            most = min(network.rpn.post_nms_top_n(), len(frame.anchors))
        norms = [m for m in network.roi_heads.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        with _held(norms, "track_running_stats", False):
            logits, offsets = self._second_stage(maps, proposals, frame)
        answer = self._pairs(logits, offsets, proposals, most)
        return Predictions(**answer, heads=heads, loss=partial(self._loss, frame), whole=False, decoding=())

    def _first_stage(self, heads: Heads, frame: _Frame) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Objectness (B A, 1) and deltas (B A, 4) of all anchors, and each image's proposals (P or fewer, 4)."""
        rpn: Any = self.network.rpn
        count = len(frame.names)
        levels = list(heads[:count])
        objectness, deltas = concat_box_prediction_layers(levels, list(heads[count : 2 * count]))
        images = len(levels[0])
        boxes = rpn.box_coder.decode(deltas.detach(), [frame.anchors] * images).view(images, -1, 4)
        found, _ = rpn.filter_proposals(boxes, objectness, [frame.size] * images, [v[0].numel() for v in levels])
        return objectness, deltas, found

    def _second_stage(self, maps: Sequence[Tensor], proposals: list[Tensor], frame: _Frame) -> tuple[Tensor, Tensor]:
        """Class logits (N, C + 1) and box offsets (N, 4 (C + 1)) of the N proposals of all images."""
        roi: Any = self.network.roi_heads
        features = dict(zip(frame.names, maps, strict=True))
        pooled = roi.box_roi_pool(features, proposals, [frame.padded] * len(proposals))
        logits, offsets = roi.box_predictor(roi.box_head(pooled))
        return logits.float(), offsets.float()

    def _pairs(self, logits: Tensor, offsets: Tensor, proposals: list[Tensor], most: int) -> dict[str, Tensor]:
        """What the second stage says of the proposals, as the class docstring has it; `most` is P."""
        roi: Any = self.network.roi_heads
        counts = [len(found) for found in proposals]
        columns = logits.shape[1]
        classes = columns - 1

        def filled(values: Tensor) -> Tensor:
            """(N, ...) values of proposals as (B, P, ...), zeros where an image has fewer."""
            rest = (0, 0) * (values.ndim - 1)
            return torch.stack([F.pad(part, (*rest, 0, most - len(part))) for part in torch.split(values, counts)])

        boxes = filled(roi.box_coder.decode(offsets, proposals).view(-1, columns, 4)[:, 1:])  # (B, P, C, 4)
        scores = filled(logits.softmax(-1)[:, 1:])  # (B, P, C)
        rank = scores.detach()
        rank = rank.scatter(1, rank.argmax(1, keepdim=True), 2.0)  # each class's surest come first
        pair = rank.flatten(1).topk(min(most * classes, most + classes)).indices[..., None]  # (B, L, 1)
        place, label = pair // classes, pair % classes
        return {
            "class_logits": filled(logits[:, 1:]).gather(1, place.expand(-1, -1, classes)),
            "scores": scores.flatten(1)[..., None].gather(1, pair) * F.one_hot(label[..., 0], classes),
            "boxes": boxes.flatten(1, 2).gather(1, pair.expand(-1, -1, 4)),
            "centres": filled(_middles(torch.cat(proposals))).gather(1, place.expand(-1, -1, 2)),
        }

    def _loss(self, frame: _Frame, heads: Heads, targets: list[Labelled]) -> Tensor:
        """The four losses of the two stages, as the model has them while it trains."""
        rpn: Any = self.network.rpn
        roi: Any = self.network.roi_heads
        wanted = _as_torchvision(targets)
        anchors = [frame.anchors] * len(targets)
        with _held([rpn], "training", True):
            objectness, deltas, proposals = self._first_stage(heads, frame)
        labels, matched = rpn.assign_targets_to_anchors(anchors, wanted)
        losses = [*rpn.compute_loss(objectness, deltas, labels, rpn.box_coder.encode(matched, anchors))]
        proposals, _, labels, matched = roi.select_training_samples(proposals, wanted)
        if any(map(len, proposals)):  # a mean over none would not be a number
            logits, offsets = self._second_stage(heads[2 * len(frame.names) :], proposals, frame)
            losses += fastrcnn_loss(logits, offsets, labels, matched)
        return torch.stack(losses).sum()


_ADAPTERS: dict[type[nn.Module], Callable[[nn.Module], Detector]] = {
    SSD: SSDDetector,
    FCOS: FCOSDetector,
    RetinaNet: RetinaNetDetector,
    FasterRCNN: FasterRCNNDetector,
}


def _one_stage(family: str, network: Any, images: Tensor) -> tuple[dict[str, Tensor], Tensor, list[int], Decoding]:
    """A one-stage model's raw outputs by name (B, L, ...), anchors (L, 4), how many cells a level has, and decoding."""
    padded = _padded(network, images)
    maps = list(_features(network, padded).values())
    outputs = {name: values.float() for name, values in network.head(maps).items()}
    strides = [(padded.shape[-2] / m.shape[-2], padded.shape[-1] / m.shape[-1]) for m in maps]
    decoding = described(family, strides=strides, anchors=network.anchor_generator, box_coder=network.box_coder)
    return outputs, _anchors(network.anchor_generator, padded, maps), [m[0, 0].numel() for m in maps], decoding


def _predictions(
    outputs: Mapping[str, Tensor], anchors: Tensor, scores: Tensor, boxes: Tensor, losses: _Losses, decoding: Decoding
) -> Predictions:
    """A one-stage model's answer. `scores` (B, L, C + 1) have background's column, or the unused one, still."""
    names = tuple(outputs)

    def loss(heads: Heads, targets: list[Labelled]) -> Tensor:
        terms = losses(_as_torchvision(targets), dict(zip(names, heads, strict=True)), [anchors] * len(targets))
        return torch.stack(list(terms.values())).sum()

    return Predictions(
        class_logits=outputs["cls_logits"][..., 1:],
        scores=scores[..., 1:],
        boxes=boxes,
        centres=_middles(anchors).expand(boxes.shape[0], -1, -1),
        heads=tuple(outputs.values()),
        loss=loss,
        decoding=decoding,
    )


def _as_torchvision(targets: list[Labelled]) -> list[dict[str, Tensor]]:
    return [{"boxes": boxes, "labels": labels + 1} for labels, boxes in targets]


def _padded(network: Any, images: Tensor) -> Tensor:
    down, right = (-side % network.transform.size_divisible for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down)) if down or right else images


def _features(network: Any, images: Tensor) -> dict[str, Tensor]:
    features = network.backbone(images)
    return {"0": features} if isinstance(features, Tensor) else dict(features)


def _anchors(generator: Any, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """(L, 4) anchors of an image, in pixels. In float32 also where autocast makes maps bfloat16, of 8 bits."""
    shapes = [torch.zeros((), device=images.device).expand(m.shape) for m in maps]
    anchors: Tensor = generator(ImageList(images, [images.shape[-2:]]), shapes)[0]
    return anchors


def _decoded(coder: Any, deltas: Tensor, anchors: Tensor) -> Tensor:
    """(B, L, 4) boxes of deltas (B, L, 4); the coder bounds their sides."""
    boxes: Tensor = coder.decode_single(deltas.flatten(0, 1), anchors.repeat(deltas.shape[0], 1))
    return boxes.view_as(deltas)


def _middles(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


@contextmanager
def _held(modules: Sequence[nn.Module], name: str, value: bool) -> Iterator[None]:
    """Within it, the attribute `name` of these modules (not of those within them) is `value`."""
    before = [getattr(module, name) for module in modules]
    try:
        for module in modules:
            setattr(module, name, value)
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            setattr(module, name, was)
