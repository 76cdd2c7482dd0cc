"""How a student learns: the options of a recipe's section `training`, the same for every source and task."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from datafree.ops import modes
from datafree.ops.performance import ALL_ON, Speed
from datafree.sources.base import Batch, SourceContext
from datafree.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the student learns. The same for every source and task."""

    steps: int = 1000  # of the student
    batch_size: int | Literal["auto"] = 16  # images a step; auto: as many as fit, found when a run begins
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
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"batch_size is {self.batch_size!r}; give a number, or auto")
        for name in ("steps", "batch_size", "log_every", "save_every", "picture_every"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")

    @property
    def batch(self) -> int:
        """Images a step; what "auto" stands for must be known (`batch_size.with_batch_size`)."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

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

    def source_context(
        self,
        task: Task,
        teacher: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        say: Callable[[str], None],
        on_finished_batch: Callable[[Batch], None] | None = None,
        lr_scale: Callable[[], float] = lambda: 1.0,
    ) -> SourceContext:
        """What a source is given of this training before it works."""
        return SourceContext(
            task=task,
            teacher=teacher,
            steps=self.steps,
            batch_size=self.batch,
            seed=self.seed,
            device=device,
            dtype=dtype,
            speed=self.speed,
            say=say,
            on_finished_batch=on_finished_batch,
            lr_scale=lr_scale,
        )
