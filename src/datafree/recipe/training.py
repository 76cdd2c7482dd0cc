"""How a student learns: the options of a recipe's section `training`, the same for every source and task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Literal, final

import torch
from torch import nn

from datafree.ops import modes
from datafree.ops.performance import ALL_ON, Speed
from datafree.sources.base import Batch, SourceContext
from datafree.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ABC):
    """How the student learns, whether its batch size is known (`Training`) or to be found (`AutoTraining`)."""

    steps: int = 1000  # of the student
    batch_size: int | Literal["auto"]  # images a step; auto: as many as fit, found when a run begins
    optimizer: Literal["sgd", "adam"] = "adam"
    lr: float = 1e-3
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4
    lr_schedule: Literal["step", "cosine", "none"] = "cosine"  # step: a tenth at 1/3 and 2/3 of the steps
    label_weight: float = 0.0  # of the loss on the source's own targets, where it has some
    attention_weight: float = 0.0  # of the distance between the attention maps of both networks' paired layers
    attention_layers: dict[str, str] = field(
        default_factory=dict
    )  # teacher's layer -> student's; empty: paired by size
    shift: int = 0  # pixels: images the student learns from are shifted by up to this, and mirrored at 1/2; 0 = not
    mixup: float = 0.0  # share of each batch that is mixed with others of it
    select: Literal["last", "agreement"] = (
        "last"  # the student that is kept; agreement: with the teacher, held-out images
    )
    seed: int = 0
    device: str = "auto"
    precision: modes.Precision = "auto"  # auto: bf16 where the hardware computes it
    speed: Speed = ALL_ON  # what makes it faster on one device, each of which can be turned off
    log_every: int = 20  # steps
    save_every: int = 200  # steps
    picture_every: int = 500  # steps
    max_rollbacks: int = 3  # at most: back to the last good state at half the rates, after numbers that are not finite

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "save_every", "picture_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")

    @abstractmethod
    def with_batch_size(self, batch_size: int) -> Training:
        """The same with batches of so many images."""

    def lr_at(self, step: int) -> float:
        """The learning rate of a step: a pure function of it."""
        fraction = step / self.steps
        if self.lr_schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * fraction)) / 2
        return self.lr * 0.1 ** int(fraction * 3) if self.lr_schedule == "step" else self.lr

    def make_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The student's optimiser."""
        if self.optimizer == "sgd":
            return self.speed.sgd(network.parameters(), self.lr, self.momentum, self.weight_decay)
        return self.speed.adam(network.parameters(), self.lr, weight_decay=self.weight_decay)


@final
@dataclass(frozen=True, kw_only=True)
class Training(TrainingOptions):
    """How the student learns. The same for every source and task."""

    batch_size: int = 16  # images a step

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.batch_size, int):
            raise ValueError(f"batch_size is {self.batch_size!r}; give a number, or {{'batch_size': 'auto', ...}}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")

    def with_batch_size(self, batch_size: int) -> Training:
        return replace(self, batch_size=batch_size)

    def setting(
        self,
        task: Task,
        teacher: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        say: Callable[[str], None],
        keep: Callable[[Batch], None] | None = None,
        pace: Callable[[], float] = lambda: 1.0,
    ) -> SourceContext:
        """What a source is told of this training before it works."""
        return SourceContext(
            task=task,
            teacher=teacher,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            device=device,
            dtype=dtype,
            speed=self.speed,
            say=say,
            keep=keep,
            pace=pace,
        )


@final
@dataclass(frozen=True, kw_only=True)
class AutoTraining(TrainingOptions):
    """The same before its batch size is known: as many images as fit, found when a run begins."""

    batch_size: Literal["auto"] = "auto"

    def with_batch_size(self, batch_size: int) -> Training:
        return Training(
            **{**{option.name: getattr(self, option.name) for option in fields(self)}, "batch_size": batch_size}
        )
