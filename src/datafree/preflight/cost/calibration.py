"""A run made small and timed: its source with few images and few iterations an update, its student on few images.

Time grows in proportion to both, so that an estimate takes seconds where the run takes hours.

B images, H x W pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from datafree.distributed import replicas
from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.engine.student_step import StudentStep
from datafree.networks import features
from datafree.preflight.cost.activation_memory import watched_memory
from datafree.preflight.cost.pass_cost import Cost, cost_of
from datafree.recipe.training import Training
from datafree.sources.base import Batch, ImageSource
from datafree.storage.checkpoint import size_of
from datafree.tasks.base import Task, synthetic_batch

_SETTLED = 10  # updates after which a state holds all that it will, a guard's last healthy one too
_MORE = 4  # iterations by which a second timing of an update is longer than the first


@dataclass(frozen=True, kw_only=True)
class CostItem:
    """Something that is done again and again."""

    what: str
    often: int
    each: Cost

    @property
    def seconds(self) -> float:
        """Of all of it, by one process."""
        return self.often * self.each.seconds


@dataclass(kw_only=True)
class Calibration:
    """A run made small. `teacher` is frozen, `student` is changed, `source` is not.

    Raises DatafreeError where the source refuses the teacher or its own options.
    """

    task: Task
    teacher: nn.Module
    student: nn.Module
    source: ImageSource
    training: Training
    dtype: torch.dtype
    most: int  # images at once
    budget: float  # seconds that each thing is timed for, about
    keep: Callable[[Batch], None] | None = None  # takes the batches that the small source finishes
    small: ImageSource = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    timed: int = field(init=False)  # images of the student's step
    peak: int = field(default=0, init=False)  # bytes that a backward pass keeps at most, of whole batches

    def __post_init__(self) -> None:
        training = self.training
        self.device = next(self.teacher.parameters()).device
        self.timed = max(2, min(self.most, training.batch_size))
        self._training = replace(training, batch_size=self.timed, lr=1e-12)  # nothing goes wrong by a few more steps
        self.small = self._attached(self.most, self.keep)
        for network in (self.teacher, self.student):
            replicas.share(network)
        self.optimizer = training.make_optimizer(self.student.train())

    def updates(self, steps: Sequence[int]) -> list[CostItem]:
        """The source's updates at `steps`, those before the student's first step apart."""
        work = []
        for part, full in zip(_parts(self.small), _parts(self.source), strict=True):
            due = [step for step in steps if full.due(step)]
            early = sum(step < 0 for step in due)
            for step, often in ((-1, early), (0, len(due) - early)):
                if often:
                    name = type(full).__name__.lower()
                    what = f"{name}, {'before the student' if step < 0 else 'updates'}"
                    work.append(CostItem(what=what, often=often, each=self.update(part, full, step)))
        return work

    def step(self) -> CostItem:
        """The student's steps."""
        learn, whole = self._student_step(), self.training.batch_size
        self._note_peak(self._kept_by(learn), self.timed, whole)
        each = cost_of(learn, self.device, self.timed, self.budget).of_images(whole)
        return CostItem(what="the student", often=self.training.steps, each=each)

    def kept(self) -> int:
        """Bytes that a step of the student on `timed` images keeps for its backward pass, at the peak."""
        return self._kept_by(self._student_step())

    def _student_step(self) -> Callable[[], None]:
        """A step of the student."""
        watch, pairs = Watch(self.device), {}
        if self.training.attention_weight:
            look = synthetic_batch(self.task.image_size, self.device)
            pairs = features.chosen_pairs(self.teacher, self.student, look, self.training.attention_layers)
        student_step = StudentStep(
            task=self.task,
            teacher=self.teacher,
            student=self.student,
            training=self._training,
            optimizer=self.optimizer,
            pairs=pairs,
            watch=watch,
            recovery=Recovery(),
        )

        def learn() -> None:
            watch.begin(0)
            student_step.learn(self.small.sample(self.timed), 0)
            watch.look()

        return learn

    def _kept_by(self, work: Callable[[], None]) -> int:
        with watched_memory([self.teacher, self.student]) as memory:
            work()
        return memory.peak

    def update(self, part: ImageSource, full: ImageSource, step: int) -> Cost:
        """An update with all iterations and images of `full`, by `part`, which is attached and has few."""
        count = getattr(part, "batch_size", self.timed)

        def update() -> None:
            part.update(self.student, step)

        whole = getattr(full, "batch_size", count)
        self._note_peak(self._kept_by(update), count, whole)
        once = cost_of(update, self.device, count, self.budget)
        total = once
        for name, index, iterations in _iterations(full):
            _set_iterations(part, name, index, 1 + _MORE)
            longer = cost_of(update, self.device, count, self.budget, least=1)
            _set_iterations(part, name, index, 1)
            more = longer + once.times(-1)
            total = total + more.times((iterations - 1) / _MORE if more.seconds > 0 else 0.0)
        return total.of_images(whole)

    def state_bytes(self, steps: Sequence[int]) -> int:
        """Bytes of the source's state when its banks are full: a new one's after a few updates, with what they lack."""
        total, fresh = 0.0, self._attached(2, None)
        for part, full in zip(_parts(fresh), _parts(self.source), strict=True):
            due = [step for step in steps if full.due(step)]
            made = kept = 0  # images of the whole run, and here, of updates that keep them: early ones may not
            each = 0.0
            for step, often in ((0, sum(step >= 0 for step in due)), (-1, sum(step < 0 for step in due))):
                sizes = [size_of(part.state_dict())]
                for _ in range(_SETTLED if often else 0):
                    part.update(self.student, step)
                    sizes.append(size_of(part.state_dict()))
                if often and sizes[5] > sizes[4]:  # the first ones set things up
                    count = getattr(part, "batch_size", 1)
                    each, kept = (sizes[5] - sizes[4]) / count, kept + _SETTLED * count
                    made += often * getattr(full, "batch_size", 0)
            room = getattr(full, "bank_size", 0)
            total += size_of(part.state_dict()) + each * (min(room, made) - min(room, kept))
        return round(total)

    def _attached(self, most: int, keep: Callable[[Batch], None] | None) -> ImageSource:
        small = _smaller(copy.deepcopy(self.source), most)
        small.attach(
            self._training.setting(self.task, self.teacher, self.device, self.dtype, lambda line: None, keep=keep)
        )
        return small

    def _note_peak(self, peak: int, count: int, whole: int) -> None:
        self.peak = max(self.peak, math.ceil(peak * whole / count))


def banks_of(source: ImageSource, training: Training, image_size: tuple[int, int]) -> int:
    """Bytes of a source's banks, 8 bits a channel: they are taken whole with the first image (`bank.Bank`)."""
    steps = range(-source.warmup, training.steps)
    held = sum(getattr(part, "bank_size", 0) for part in _parts(source) if any(map(part.due, steps)))
    return held * 3 * math.prod(image_size)


def _parts(source: ImageSource) -> list[ImageSource]:
    """A source that mixes others, taken apart."""
    parts = getattr(source, "parts", None)
    return [part for each in parts for part in _parts(each)] if isinstance(parts, list) else [source]


def _smaller(source: ImageSource, most: int) -> ImageSource:
    """The same with updates of `most` images, or as many as it has, one iteration each where it has such."""
    parts = getattr(source, "parts", None)
    if isinstance(parts, list):
        changes: dict[str, Any] = {"parts": [_smaller(part, most) for part in parts]}
        return replace(source, **changes)
    count = getattr(source, "batch_size", None)
    changes = {"batch_size": max(2, min(count, most))} if isinstance(count, int) else {}
    small = replace(source, **changes)
    for name, index, _ in _iterations(source):
        _set_iterations(small, name, index, 1)
    return small


def _iterations(source: ImageSource) -> list[tuple[str, int | None, int]]:
    """Options by which an update has iterations: name, index in it where it is a list of stages, and how many."""
    if isinstance(count := getattr(source, "iterations", None), int):
        return [("iterations", None, count)]
    stages = getattr(source, "stages", None)
    if isinstance(stages, list) and all(hasattr(stage, "iterations") for stage in stages):
        return [("stages", index, stage.iterations) for index, stage in enumerate(stages)]
    return []


def _set_iterations(source: ImageSource, name: str, index: int | None, count: int) -> None:
    if index is None:
        setattr(source, name, count)
    else:
        stages = list(getattr(source, name))
        stages[index] = replace(stages[index], iterations=count)
        setattr(source, name, stages)
