"""The interface of detection networks: `Detector`, an adapter that answers `Predictions`.

A detector is adapted once, here or by its owner, before anything else sees it. An adapter is a `Detector`: a module
around the bare network whose forward pass answers `Predictions`. Your own takes three things (docs/detection.md shows
a whole one, examples/fastestdet.py a real one):

    class MyDetector(Detector):
        backbone = "body"                                # the bare network's layers that are no heads

        def forward(self, images):                       # (B, 3, H, W), normalised as the network wants them
            raw = self.network(images)                   # its heads, before any sigmoid or softmax
            ...                                          # decoded to boxes in pixels of these images
            return Predictions(class_logits=..., scores=..., boxes=..., centres=..., heads=(raw,), loss=self.loss)

        def loss(self, heads, targets): ...              # its own training loss, as a scalar; see `Predictions.loss`

    def make(): return MyDetector(network)               # named in a recipe as "package.module:make"

B images, L locations (cells x anchors, or proposals), C classes, M rows of targets, N boxes of one image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from datafree.ops.predictions import Predictions


class Detector(nn.Module, ABC):
    """A bare detection network, adapted. `network` is what is saved and loaded, without this wrapping's name."""

    backbone: ClassVar[str] = ""  # the bare network's layers below this name make features, all others are heads

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def forward(self, images: Tensor) -> Predictions:
        """Images (B, 3, H, W), normalised for the network -> what it says about them, in train and eval mode alike."""
