"""transformers' set-prediction detectors as `Detector`s: DETR and its family, YOLOS.

Each of Q learnt queries answers one box, as centre and sides in shares of the image, and its classes: by softmax with a
last column for "no object" (DETR, Table Transformer, YOLOS), or by a sigmoid for each class (Conditional, DAB and
Deformable DETR, RT-DETR, D-FINE, DEIM, LW-DETR, RF-DETR).

B images, L = Q locations, C classes, N boxes of one image, H x W pixels.
"""

from __future__ import annotations

import itertools
from abc import ABC
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.detectors import Detector
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions, described
from datafree.ops.upload import uploaded

_NUMBERS: Iterator[int] = itertools.count(1)


class _QueryDetector(Detector, ABC):
    """What they share. Heads: class logits (B, Q, C or C + 1), boxes (B, Q, 4) as centre and sides in [0, 1].

    Queries of two networks do not correspond, even where their shapes do, so heads are never matched: `decoding` is
    another for every network. `loss` is transformers' own, of the last layer alone: Hungarian matching, then classes,
    L1 and generalised IoU with the weights of the config (Carion et al., arXiv 2005.12872, eq. 1 and 2).
    """

    no_object: ClassVar[bool]  # whether the last column of the logits is "no object", under a softmax

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        config: Any = network.config
        config.auxiliary_loss = False
        self._decoding = described(type(network).__name__, queries=f"those of network {next(_NUMBERS)}")

    def forward(self, images: Tensor) -> Predictions:
        answer: Any = self.network(images)
        logits, shares = answer.logits.float(), answer.pred_boxes.float()  # (B, Q, C or C + 1), (B, Q, 4)
        height, width = images.shape[-2:]
        sides = uploaded([width, height], shares.device, shares.dtype)
        centres, halves = shares[..., :2] * sides, shares[..., 2:] * sides / 2
        return Predictions(
            class_logits=logits[..., :-1] if self.no_object else logits,
            scores=logits.softmax(-1)[..., :-1] if self.no_object else logits.sigmoid(),
            boxes=torch.cat((centres - halves, centres + halves), -1),
            centres=centres.detach(),
            heads=(logits, shares),
            loss=partial(self._loss, (height, width)),
            decoding=self._decoding,
        )

    def _loss(self, size: tuple[int, int], heads: Heads, targets: list[Labelled]) -> Tensor:
        network: Any = self.network
        logits, shares = heads
        sides = uploaded([size[1], size[0]], shares.device, shares.dtype).repeat(2)
        wanted = [
            {
                "class_labels": labels,
                "boxes": torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / sides,
            }
            for labels, boxes in targets
        ]
        try:
            loss, *_ = network.loss_function(logits, wanted, logits.device, shares, network.config, None, None)
        except ImportError as error:
            raise NetworkError(
                "the loss of a transformers detector matches boxes by scipy, which is not installed: pip install "
                "'datafree[transformers]'"
            ) from error
        return torch.as_tensor(loss)


@final
class DETRDetector(_QueryDetector):
    """DETR and Table Transformer."""

    backbone = "model.backbone"
    no_object = True


@final
class YOLOSDetector(_QueryDetector):
    """YOLOS: a ViT with detection tokens in place of a decoder's queries."""

    backbone = "vit"
    no_object = True


@final
class SigmoidDETRDetector(_QueryDetector):
    """Those of DETR's family with a sigmoid for each class."""

    backbone = "model.backbone"
    no_object = False


_ADAPTERS: dict[str, type[_QueryDetector]] = {
    **dict.fromkeys(("DetrForObjectDetection", "TableTransformerForObjectDetection"), DETRDetector),
    "YolosForObjectDetection": YOLOSDetector,
    **dict.fromkeys(
        (
            *("ConditionalDetrForObjectDetection", "DabDetrForObjectDetection", "DeformableDetrForObjectDetection"),
            *("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection", "DFineForObjectDetection"),
            *("Deimv2ForObjectDetection", "LwDetrForObjectDetection", "RfDetrForObjectDetection"),
        ),
        SigmoidDETRDetector,
    ),
}


def is_detector(network: nn.Module) -> bool:
    """Whether `network` is a bare detector of transformers'."""
    kind = type(network)
    return kind.__module__.startswith("transformers.") and kind.__name__.endswith("ForObjectDetection")


def adapt(network: nn.Module) -> Detector:
    """A detector of transformers' as a `Detector`. Raises NetworkError for those with other heads."""
    name = type(network).__name__
    if name not in _ADAPTERS:
        raise NetworkError(f"a {name} has no adapter here; {', '.join(sorted(_ADAPTERS))} have")
    return _ADAPTERS[name](network)
