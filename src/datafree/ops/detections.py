"""Detections of an image: predictions after non-maximum suppression, and DIODE's false-positive sampling.

B images, L locations, C classes, N detections of one image.

torchvision is imported where it is used: that takes seconds, which only who looks for boxes has to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datafree.ops.boxes import NONE, emptied, overlaps, pack, present
from datafree.ops.predictions import Predictions
from datafree.ops.upload import uploaded

BEFORE_NMS = 1000  # pairs of location and class at most that compete in one image, the surest ones


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What is found in one image, the surest first."""

    labels: Tensor  # (N,) int64
    boxes: Tensor  # (N, 4): x1, y1, x2, y2, pixels
    scores: Tensor  # (N,) in [0, 1]
    places: Tensor  # (N,) int64: the location each comes from

    def of(self, label: int) -> Detections:
        """Those of one class."""
        kept = self.labels == label
        return Detections(
            labels=self.labels[kept], boxes=self.boxes[kept], scores=self.scores[kept], places=self.places[kept]
        )


@torch.no_grad()
def detect(
    outputs: Predictions, *, score_threshold: float, nms_iou: float, max_detections: int, size: tuple[int, int]
) -> list[Detections]:
    """Each image's detections with a score above `score_threshold`, cut to images of `size` (height, width).

    At most `max_detections` of an image.

    A location may be found as several classes (multi-label). Within a class, of two boxes whose IoU is above `nms_iou`
    only the surer stays. Boxes with a side below a pixel are none.
    """
    from torchvision.ops import batched_nms

    height, width = size
    found = []
    for scores, boxes in zip(outputs.scores.detach(), outputs.boxes.detach(), strict=True):
        classes = scores.shape[1]
        kept = scores.flatten().topk(min(BEFORE_NMS, scores.numel()))
        values, index = kept.values, kept.indices
        places, labels = index // classes, index % classes
        limits = uploaded([width, height, width, height], boxes.device, boxes.dtype)
        cut = torch.minimum(boxes[places].clamp_min(0), limits)
        good = (values > score_threshold) & ((cut[:, 2:] - cut[:, :2]) >= 1).all(1) & cut.isfinite().all(1)
        good = good.nonzero()[:, 0]  # once, since a device makes the host wait for each mask
        values, places, labels, cut = values[good], places[good], labels[good], cut[good]
        keep = batched_nms(cut, values, labels, nms_iou)[:max_detections]
        found.append(Detections(labels=labels[keep], boxes=cut[keep], scores=values[keep], places=places[keep]))
    return found


def agreement(ours: Sequence[Detections], theirs: Sequence[Detections], overlap: float = 0.5) -> float | None:
    """F1 of two networks' detections: twice the pairs of equal class and IoU of `overlap` or more, over all detections.

    Pairs are made greedily, ours surest first. None where neither finds anything: there is nothing to agree on.
    """
    from torchvision.ops import box_iou

    pairs = total = 0
    for one, other in zip(ours, theirs, strict=True):
        total += len(one.labels) + len(other.labels)
        if not len(one.labels) or not len(other.labels):
            continue
        alike = one.labels[:, None] == other.labels[None]
        overlaps = (box_iou(one.boxes, other.boxes) * alike).cpu()  # (N, N'); there pairs are made, one by one
        for row in overlaps:
            best, index = row.max(0)
            if best >= overlap:
                pairs += 1
                overlaps[:, index] = 0
    return 2 * pairs / total if total else None


def with_seen(
    targets: Tensor,
    found: Sequence[Detections],
    *,
    size: tuple[int, int],
    score_threshold: float = 0.2,
    max_iou: float = 0.35,
    area: tuple[float, float] = (0.01, 0.85),
) -> Tensor:
    """Targets with what a detector finds beside them: DIODE's false-positive sampling, with its published limits.

    A detection in images of `size` (height, width) becomes a box of its image where its score is above
    `score_threshold`, its IoU with every box there, of whatever class, below `max_iou`, and its share of the image
    between the two of `area`. Detections are not compared with each other. They take the empty rows, the surest first,
    as far as these go.
    """
    seen = _packed(found)  # (B, K, 5)
    if not seen.shape[1]:
        return targets
    scores = pad_sequence([one.scores for one in found], batch_first=True)  # (B, K)
    share = (seen[..., 3:] - seen[..., 1:3]).prod(-1) / (size[0] * size[1])
    new = present(seen) & (scores > score_threshold) & (overlaps(seen, targets).amax(2) < max_iou)
    new &= (share > area[0]) & (share < area[1])
    surest = torch.where(new, scores, -1.0).argsort(dim=1, descending=True, stable=True)
    empty = targets[..., 0] == NONE
    turn = empty.cumsum(1) - 1  # (B, M): an empty row takes the new box of this number
    takes = empty & (turn < new.sum(1, keepdim=True))
    chosen = surest.gather(1, turn.clamp(0, seen.shape[1] - 1))
    return torch.where(takes[..., None], seen.gather(1, chosen[..., None].expand_as(targets)), targets)


def confirmed(targets: Tensor, found: Sequence[Detections], *, min_iou: float = 0.35, keep: int = 1) -> Tensor:
    """Targets without the boxes that no detection of their image, of whatever class, meets with IoU `min_iou` or more.

    At least `keep` boxes of an image stay, those met best, and all of them where nothing is found. From the public code
    of arXiv 2507.16782, which does this along with false-positive sampling; do it first, as new boxes meet themselves.
    """
    seen = _packed(found)  # (B, K, 5)
    if not seen.shape[1]:
        return targets
    held = present(targets)
    best = overlaps(targets, seen).amax(2)  # (B, M)
    rank = torch.where(held, best, -1.0).argsort(dim=1, descending=True, stable=True).argsort(1)
    looked = present(seen).any(1, keepdim=True)
    return emptied(targets, held & looked & (best < min_iou) & (rank >= keep))


def _packed(found: Sequence[Detections]) -> Tensor:
    return pack([(one.labels, one.boxes) for one in found], max((len(one.labels) for one in found), default=0))
