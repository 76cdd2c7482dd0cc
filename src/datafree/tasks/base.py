"""What an answer is: the only object that knows about labels, masks or boxes.

B images, C classes, H x W pixels, N rows (an image, a pixel or a location each).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


@dataclass(kw_only=True)
class Scores:
    """Measured quality of a network on labelled data. Fractions in [0, 1]."""

    values: dict[str, float]  # the headline first: {"miou": ..., "pixel_accuracy": ...}
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)  # {"iou": {"road": ..., ...}}


class Metric(Protocol):
    """Sums over batches, then answers."""

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> Scores: ...


class LabelledData(Protocol):
    """Labelled images for scoring; streams, never loads a folder whole."""

    class_names: list[str]  # C names
    skipped: list[str]  # images that could not be read, each with its reason; grows while batches are read

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, H, W) float32 in [0, 1] and their targets."""
        ...

    def __len__(self) -> int: ...


@dataclass(kw_only=True)
class Task(ABC):
    """A kind of answer and how two answers are compared. Final subclasses; their fields are their options."""

    num_classes: int  # C
    image_size: tuple[int, int]  # (height, width), pixels

    @abstractmethod
    def check(self, outputs: object, what: str) -> Tensor:
        """Return `outputs` if a network called `what` answers in this task's form, else raise NetworkError."""

    @abstractmethod
    def distill_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar: how far the student's outputs are from the teacher's."""

    @abstractmethod
    def target_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scalar: how far outputs are from showing the targets."""

    @abstractmethod
    def pseudo_targets(self, outputs: Tensor) -> Tensor:
        """What outputs say, as targets (hard labels)."""

    @abstractmethod
    def class_probs(self, outputs: Tensor) -> Tensor:
        """(N, C) probabilities, rows sum to 1: a row is an image, a pixel or a location."""

    @abstractmethod
    def new_metric(self, class_names: list[str] | None = None) -> Metric:
        """A fresh, empty metric; classes are called "class 0", ... where no names are given."""

    @abstractmethod
    def open_labelled(self, path: Path) -> LabelledData:
        """Labelled data at `path`, in this task's folder layout. Raises DataError."""

    @abstractmethod
    def draw(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of what `outputs` say about `images` (for people)."""

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Fraction of rows (images, pixels or locations) on which both name the same class."""
        same = self.class_probs(student).argmax(1) == self.class_probs(teacher).argmax(1)
        return float(same.float().mean())


def synthetic_batch(size: tuple[int, int], device: torch.device) -> Tensor:
    """(2, 3, H, W) smooth images for a first look at a network (two, so that train-mode BatchNorm works)."""
    ramp = torch.linspace(0, 1, size[1], device=device).expand(2, 3, size[0], size[1])
    return ramp.contiguous()
