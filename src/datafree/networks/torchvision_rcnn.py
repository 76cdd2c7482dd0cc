"""torchvision's Faster R-CNN as a `Detector`: its two stages, and the proposals that pass between them.

B images, L locations, C classes, P proposals of an image, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers

from datafree.networks.detectors import Detector
from datafree.networks.torchvision_parts import anchors_of, as_torchvision, features_of, held, middles, padded_images
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions


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
        padded = padded_images(network, images)
        features = features_of(network, padded)
        maps = list(features.values())
        objectness, deltas = network.rpn.head(maps)
        heads = tuple(head.float() for head in (*objectness, *deltas, *maps))
        frame = _Frame(
            names=tuple(features),
            size=images.shape[-2:],
            padded=padded.shape[-2:],
            anchors=anchors_of(network.rpn.anchor_generator, padded, maps),
        )
        with held([network.rpn], "training", False):  # the first stage reads there how many proposals to keep
            *_, proposals = self._first_stage(heads, frame)
            most = min(network.rpn.post_nms_top_n(), len(frame.anchors))
        norms = [m for m in network.roi_heads.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        with held(norms, "track_running_stats", False):
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
            "centres": filled(middles(torch.cat(proposals))).gather(1, place.expand(-1, -1, 2)),
        }

    def _loss(self, frame: _Frame, heads: Heads, targets: list[Labelled]) -> Tensor:
        """The four losses of the two stages, as the model has them while it trains."""
        rpn: Any = self.network.rpn
        roi: Any = self.network.roi_heads
        wanted = as_torchvision(targets)
        anchors = [frame.anchors] * len(targets)
        with held([rpn], "training", True):
            objectness, deltas, proposals = self._first_stage(heads, frame)
        labels, matched = rpn.assign_targets_to_anchors(anchors, wanted)
        losses = [*rpn.compute_loss(objectness, deltas, labels, rpn.box_coder.encode(matched, anchors))]
        proposals, _, labels, matched = roi.select_training_samples(proposals, wanted)
        if any(map(len, proposals)):  # a mean over none would not be a number
            logits, offsets = self._second_stage(heads[2 * len(frame.names) :], proposals, frame)
            losses += fastrcnn_loss(logits, offsets, labels, matched)
        return torch.stack(losses).sum()
