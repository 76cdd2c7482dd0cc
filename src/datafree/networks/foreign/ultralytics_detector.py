"""Ultralytics' detectors as `Detector`: the boxes of YOLOv8's head and its kin (YOLOv5u, v8, 9, 10, 11, 12, 26).

At each cell a head answers, for each of a box's four sides, R logits over the distance from the cell's centre to that
side in strides (0, 1, ..., R - 1), whose expectation is the distance (Li et al., "Generalized Focal Loss", NeurIPS
2020, arXiv 2006.04388, eq. 5); with R = 1 the distance itself; and C class logits, each for its own sigmoid.

B images, C classes, L locations (cells of all scales), R bins, h x w cells of a scale.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from datafree.errors import NetworkError
from datafree.networks.detectors import Detector
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions, described
from datafree.text import one_line

_GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}  # of the loss's terms: ultralytics' defaults


class UltralyticsDetector(Detector):
    """Heads are a tensor (B, 4 R + C, h, w) for each scale."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        head = self._head
        if not all(hasattr(head, name) for name in ("cv2", "cv3", "reg_max", "stride", "nc")):
            raise NetworkError(f"the head {type(head).__name__} is none of YOLOv8's kind; export the model to ONNX")
        self._strides = [float(stride) for stride in head.stride]
        self._bins, self._classes = int(head.reg_max), int(head.nc)
        self._own_loss: Any = None

    @property
    def _head(self) -> Any:
        network: Any = self.network
        return network.model[-1]

    def forward(self, images: Tensor) -> Predictions:
        """(B, 3, H, W) with sides that are multiples of the largest stride."""
        largest = int(max(self._strides))
        if any(side % largest for side in images.shape[2:]):
            raise NetworkError(
                f"the detector takes sides that are multiples of {largest}, not {tuple(images.shape[2:])}"
            )
        head = self._head
        parts = zip(head.cv2, head.cv3, self._features(images), strict=True)
        heads = tuple(torch.cat([box(feature), cls(feature)], 1) for box, cls, feature in parts)
        return self._decoded(heads)

    def _features(self, images: Tensor) -> list[Tensor]:
        """What goes into the head: each layer takes the one before, or those that it names by their places."""
        network: Any = self.network
        kept: list[Any] = []
        current: Any = images
        last = len(network.model) - 1  # by its place: an exporter's stand-ins for layers are not the same object
        for index, layer in enumerate(network.model):
            if layer.f != -1:
                places = [layer.f] if isinstance(layer.f, int) else layer.f
                given = [current if place == -1 else kept[place] for place in places]
                current = given[0] if isinstance(layer.f, int) else given
            if index == last:
                break
            current = layer(current)
            kept.append(current if layer.i in network.save else None)
        return list(current)

    def _decoded(self, heads: Heads) -> Predictions:
        boxes, logits, centres = [], [], []
        for head, stride in zip(heads, self._strides, strict=True):
            batch, _, height, width = head.shape
            rows = head.flatten(2).transpose(1, 2).float()  # (B, h w, 4 R + C)
            sides = rows[..., : 4 * self._bins].reshape(batch, -1, 4, self._bins)
            # eq. 5: the expectation over the bins 0, ..., R - 1
            bins = torch.arange(self._bins, dtype=torch.float32, device=head.device)
            distance = (
                (sides.softmax(-1) * bins).sum(-1) if self._bins > 1 else sides.squeeze(-1)
            )  # left, top, right, down
            down, right = torch.meshgrid(
                torch.arange(height, device=head.device), torch.arange(width, device=head.device), indexing="ij"
            )
            centre = (torch.stack([right, down], -1).flatten(0, 1) + 0.5).expand(batch, -1, -1)  # (B, h w, 2), strides
            boxes.append(torch.cat([centre - distance[..., :2], centre + distance[..., 2:]], -1) * stride)
            centres.append(centre * stride)
            logits.append(rows[..., 4 * self._bins :])
        class_logits = torch.cat(logits, 1)
        return Predictions(
            class_logits=class_logits,
            scores=class_logits.sigmoid(),
            boxes=torch.cat(boxes, 1),
            centres=torch.cat(centres, 1),
            heads=heads,
            loss=self._loss,
            decoding=described("yolov8", strides=self._strides, bins=self._bins),
        )

    def _loss(self, heads: Heads, targets: list[Labelled]) -> Tensor:
        """ultralytics' own training loss, as a mean over images."""
        sizes = torch.tensor([heads[0].shape[3], heads[0].shape[2]], device=heads[0].device) * self._strides[0]
        rows = [
            torch.cat([torch.full_like(boxes[:, :1], image), labels[:, None].to(boxes), boxes], 1)
            for image, (labels, boxes) in enumerate(targets)
        ]
        image, label, *corners = torch.cat(rows).float().to(heads[0].device).unbind(1)  # each (M,)
        near, far = torch.stack(corners[:2], -1), torch.stack(corners[2:], -1)
        boxes = torch.cat([(near + far) / 2, far - near], -1) / sizes.repeat(2)  # x, y, width, height in [0, 1]
        flat = torch.cat([head.flatten(2) for head in heads], 2)
        answers = {"boxes": flat[:, : 4 * self._bins], "scores": flat[:, 4 * self._bins :], "feats": list(heads)}
        batch = {"batch_idx": image, "cls": label, "bboxes": boxes}
        try:
            total, _ = self._made_loss(heads[0].device)(answers, batch)
        except Exception as error:  # of another version of the package
            raise NetworkError(
                f"ultralytics' loss cannot be computed ({one_line(error)}); it is used as of 8.4"
            ) from error
        whole: Tensor = total.sum() / heads[0].shape[0]
        return whole

    def _made_loss(self, device: torch.device) -> Any:
        if self._own_loss is None or self._own_loss.device != device:
            from ultralytics.utils.loss import v8DetectionLoss

            network: Any = self.network
            given = getattr(network, "args", None)
            network.args = SimpleNamespace(**{**_GAINS, **(vars(given) if isinstance(given, SimpleNamespace) else {})})
            self._own_loss = v8DetectionLoss(network)
        return self._own_loss
