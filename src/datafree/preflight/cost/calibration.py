"""Calibration of a run's cost: the run made small, and timed.

Time grows in proportion to both, so that an estimate takes seconds where the run takes hours.

B images, H x W pixels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

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
from datafree.sources.base import Batch, ImageSource, UpdateSize, attach
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
    on_finished_batch: Callable[[Batch], None] | None = None  # takes the batches that the small source finishes
    clock: Callable[[], float] = time.perf_counter  # what seconds are counted by
    small: ImageSource = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    timed: int = field(init=False)  # images of the student's step
    peak: int = field(default=0, init=False)  # bytes that a backward pass keeps at most, of whole batches

    def __post_init__(self) -> None:
        training = self.training
        self.device = next(self.teacher.parameters()).device
        self.timed = max(2, min(self.most, training.batch_size))
        self._training = replace(training, batch_size=self.timed, lr=1e-12)  # nothing goes wrong by a few more steps
        self.small = self._attached(self.most, self.on_finished_batch)
        for network in (self.teacher, self.student):
            replicas.share(network)
        self.optimizer = training.make_optimizer(self.student.train())

    def updates(self, steps: Sequence[int]) -> list[CostItem]:
        """The source's updates at `steps`, those before the student's first step apart."""
        work = []
        for part, full in zip(self.small.updated_sources(), self.source.updated_sources(), strict=True):
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
        each = cost_of(learn, self.device, self.timed, self.budget, clock=self.clock).of_images(whole)
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
        unknown = UpdateSize(images=self.timed)
        small, whole = part.update_size() or unknown, full.update_size() or unknown

        def update() -> None:
            part.update(self.student, step)

        self._note_peak(self._kept_by(update), small.images, whole.images)
        once = cost_of(update, self.device, small.images, self.budget, clock=self.clock)
        total = once
        for stage, iterations in enumerate(whole.iterations):
            counts = tuple(1 + _MORE * (stage == other) for other in range(len(small.iterations)))
            part.resize_updates(replace(small, iterations=counts))
            longer = cost_of(update, self.device, small.images, self.budget, least=1, clock=self.clock)
            part.resize_updates(small)
            more = longer + once.times(-1)
            total = total + more.times((iterations - 1) / _MORE if more.seconds > 0 else 0.0)
        return total.of_images(whole.images)

    def state_bytes(self, steps: Sequence[int]) -> int:
        """Bytes of the source's state when its banks are full: a new one's after a few updates, with what they lack."""
        total, fresh = 0.0, self._attached(2, None)
        for part, full in zip(fresh.updated_sources(), self.source.updated_sources(), strict=True):
            due = [step for step in steps if full.due(step)]
            small, whole = part.update_size() or UpdateSize(images=1), full.update_size() or UpdateSize(images=0)
            made = kept = 0  # images of the whole run, and here, of updates that keep them: early ones may not
            each = 0.0
            for step, often in ((0, sum(step >= 0 for step in due)), (-1, sum(step < 0 for step in due))):
                sizes = [size_of(part.state_dict())]
                for _ in range(_SETTLED if often else 0):
                    part.update(self.student, step)
                    sizes.append(size_of(part.state_dict()))
                if often and sizes[5] > sizes[4]:  # the first ones set things up
                    each, kept = (sizes[5] - sizes[4]) / small.images, kept + _SETTLED * small.images
                    made += often * whole.images
            room = full.bank_images()
            total += size_of(part.state_dict()) + each * (min(room, made) - min(room, kept))
        return round(total)

    def _attached(self, most: int, on_finished_batch: Callable[[Batch], None] | None) -> ImageSource:
        small = copy.deepcopy(self.source)
        shrink(small, most)
        attach(
            small,
            self._training.source_context(
                self.task, self.teacher, self.device, self.dtype, lambda line: None, on_finished_batch=on_finished_batch
            ),
        )
        return small

    def _note_peak(self, peak: int, count: int, whole: int) -> None:
        self.peak = max(self.peak, math.ceil(peak * whole / count))


def banks_of(source: ImageSource, training: Training, image_size: tuple[int, int]) -> int:
    """Bytes of a source's banks, 8 bits a channel: they are taken whole with the first image (`memory_bank.Bank`)."""
    steps = range(-source.warmup, training.steps)
    held = sum(each.bank_images() for each in source.all_sources() if any(map(each.due, steps)))
    return held * 3 * math.prod(image_size)


def shrink(source: ImageSource, most: int) -> None:
    """Make the updates of a source, and of those that it holds, of `most` images or fewer, one iteration a stage."""
    for each in source.all_sources():
        if (size := each.update_size()) is not None:
            images = max(2, min(size.images, most))
            each.resize_updates(UpdateSize(images=images, iterations=(1,) * len(size.iterations)))
