"""How a student learns: the options of a recipe's section `training`, the same for every source and task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal, final

import torch
from torch import nn
from typing_extensions import Doc

from datafree.config import options
from datafree.config.duration import seconds_of
from datafree.config.options import Count, Duration, Momentum, NonNegative, Positive, PositiveInt, Share, Weight
from datafree.errors import DataError
from datafree.ops import modes
from datafree.ops.performance import ALL_ON, Speed
from datafree.sources.base import Batch, SourceContext
from datafree.tasks.base import Task
from datafree.text import show


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ABC):
    """How the student learns, whether its batch size is known (`Training`) or to be found (`AutoTraining`)."""

    time: Annotated[
        Duration | None, Doc("such as 30m: steps, warm-up and rhythm are planned to end with it; unset: as stated")
    ] = None
    steps: Annotated[PositiveInt, Doc("of the student; planned anew where `time` is set")] = 1000
    batch_size: Annotated[
        PositiveInt | Literal["auto"], Doc("images a step; auto: as many as fit, found when a run begins")
    ]
    optimizer: Literal["sgd", "adam"] = "adam"
    lr: Positive = 1e-3
    momentum: Annotated[Momentum, Doc("of SGD")] = 0.9
    weight_decay: NonNegative = 5e-4
    lr_schedule: Annotated[Literal["step", "cosine", "none"], Doc("step: a tenth at 1/3 and 2/3 of them")] = "cosine"
    lr_warmup: Annotated[
        Count,
        Doc(
            "first steps, during which the rate rises linearly to its schedule's; with `time` a tenth at most; 0 = none"
        ),
    ] = 0
    ema: Annotated[
        Momentum, Doc("of the average of the student's weights, which is kept in their place; 0 = the last weights")
    ] = 0.0
    label_weight: Annotated[Weight, Doc("of the loss on the source's own targets, where it has some")] = 0.0
    attention_weight: Annotated[
        Weight, Doc("of the distance between the attention maps of both networks' paired layers")
    ] = 0.0
    attention_layers: Annotated[dict[str, str], Doc("teacher's layer -> student's; empty: paired by size")] = field(
        default_factory=dict
    )
    shift: Annotated[
        Count, Doc("pixels: images the student learns from are shifted by up to this, and mirrored at 1/2; 0 = not")
    ] = 0
    shift_padding: Annotated[
        Literal["zeros", "reflection"], Doc("what comes in: black (beside a mask the edge), or the image mirrored")
    ] = "zeros"
    cutmix: Annotated[Share, Doc("share of each batch in which a box is cut out of another image of it")] = 0.0
    mixup: Annotated[Share, Doc("share of each batch that is mixed with others of it")] = 0.0
    select: Annotated[
        Literal["last", "agreement"], Doc("the student that is kept; agreement: with the teacher, held-out images")
    ] = "last"
    seed: Count = 0
    device: str = "auto"
    data_parallel: Annotated[
        Literal["exact", "divided"],
        Doc("of several processes; exact: one process's results; divided: each has its own part of a batch, faster"),
    ] = "exact"
    precision: Annotated[modes.Precision, Doc("auto: bf16 where the hardware computes it")] = "auto"
    speed: Annotated[Speed, Doc("what makes it faster on one device, each of which can be turned off")] = ALL_ON
    log_every: Annotated[PositiveInt, Doc("steps")] = 20
    save_every: Annotated[PositiveInt, Doc("steps")] = 200
    picture_every: Annotated[PositiveInt, Doc("steps")] = 500
    track: Annotated[
        list[Literal["tensorboard", "trackio", "wandb", "mlflow"]], Doc("what gets the metrics beside metrics.jsonl")
    ] = field(default_factory=lambda: ["tensorboard"])
    max_rollbacks: Annotated[
        Count, Doc("at most: back to the last good state at half the rates, after numbers that are not finite")
    ] = 3

    def __post_init__(self) -> None:
        options.check(self)
        if self.time is not None and seconds_of(self.time) is None:
            raise DataError(f"time is {show(self.time)}; write it as 90s, 9m or 1h30m")

    @abstractmethod
    def with_batch_size(self, batch_size: int) -> Training:
        """The same with batches of so many images."""

    def lr_at(self, step: int) -> float:
        """The learning rate of a step: a pure function of it."""
        fraction = step / self.steps
        peak = self.lr * min(1.0, (step + 1) / self.lr_warmup) if self.lr_warmup else self.lr
        if self.lr_schedule == "cosine":
            return peak * (1 + math.cos(math.pi * fraction)) / 2
        return peak * 0.1 ** int(fraction * 3) if self.lr_schedule == "step" else peak

    def make_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The student's optimiser."""
        if self.optimizer == "sgd":
            return self.speed.sgd(network.parameters(), self.lr, self.momentum, self.weight_decay)
        return self.speed.adam(network.parameters(), self.lr, weight_decay=self.weight_decay)


@final
@dataclass(frozen=True, kw_only=True)
class Training(TrainingOptions):
    """How the student learns. The same for every source and task."""

    batch_size: Annotated[PositiveInt, Doc("images a step")] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.batch_size, int):
            raise ValueError(f"batch_size is {self.batch_size!r}; give a number, or {{'batch_size': 'auto', ...}}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")

    def with_batch_size(self, batch_size: int) -> Training:
        return replace(self, batch_size=batch_size)

    def source_context(
        self,
        task: Task,
        teacher: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        say: Callable[[str], None],
        on_finished_batch: Callable[[Batch], None] | None = None,
        lr_scale: Callable[[], float] = lambda: 1.0,
        class_names: Sequence[str] = (),
    ) -> SourceContext:
        """What a source is given of this training before it works."""
        return SourceContext(
            task=task,
            teacher=teacher,
            steps=self.steps,
            batch_size=self.batch_size,
            class_names=class_names,
            seed=self.seed,
            device=device,
            dtype=dtype,
            speed=self.speed,
            say=say,
            on_finished_batch=on_finished_batch,
            lr_scale=lr_scale,
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
