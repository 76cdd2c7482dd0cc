"""Calibration of a run's cost: the run made small, and timed.

Time grows in proportion to both, so that an estimate takes seconds where the run takes hours. What does not grow counts
too often in it, by up to three times for small networks on a CPU: with `whole`, what is cheap is timed as it is.

B images, H x W pixels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from datafree.distributed import replicas
from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.engine.student_step import StudentStep
from datafree.networks import features
from datafree.networks.normalized import device_of
from datafree.preflight.cost.activation_memory import watched_memory
from datafree.preflight.cost.answer_memory import compared, peak_of
from datafree.preflight.cost.banks import Growth, early_and_late
from datafree.preflight.cost.pass_cost import Cost, cost_of
from datafree.recipe.training import Training
from datafree.sources.base import Batch, ImageSource, UpdateSize, attach
from datafree.sources.parts.memory_bank import held_out
from datafree.storage.checkpoint import size_of
from datafree.tasks.base import Task, synthetic_batch

STUDENT, ANSWERS = "the student", "answers"
_SETTLED = 10  # updates after which a state holds all that it will, a guard's last healthy one too
_FEW = 2  # updates of such as take long: the first sets things up, the second says what each adds
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
    scored: bool = False  # whether labelled images score both networks at the end
    whole: float = 0.0  # seconds up to which what seems to cost no more is done once as large as it is, and timed
    small: ImageSource = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    timed: int = field(init=False)  # images of the student's step
    # What slow updates added to their source's state while they were timed, by source and step.
    grown: dict[tuple[int, int], Growth] = field(default_factory=dict, init=False)
    # Bytes that the backward passes of each source's updates and of the student's step keep, of whole batches, and that
    # answers without gradients need.
    peaks: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        training = self.training
        self.device = device_of(self.teacher)
        self.timed = max(2, min(self.most, training.batch_size))
        self._training = replace(training, batch_size=self.timed, lr=1e-12)  # nothing goes wrong by a few more steps
        self.small = self._attached(self.most, self.on_finished_batch)
        for network in (self.teacher, self.student):
            replicas.share(network)
        self.optimizer = training.make_optimizer(self.student.train())

    @property
    def peak(self) -> int:
        """Bytes that a pass takes at most: those that backward passes keep, and those that answers need."""
        return max(self.peaks.values(), default=0)

    def updates(self, steps: range) -> list[CostItem]:
        """The source's updates at `steps`, those before the student's first step apart."""
        work = []
        for part, full in zip(self.small.updated_sources(), self.source.updated_sources(), strict=True):
            for step, often in early_and_late(full, steps):
                if often:
                    name = type(full).__name__.lower()
                    what = f"{name}, {'before the student' if step < 0 else 'updates'}"
                    work.append(CostItem(what=what, often=often, each=self.update(part, full, step)))
        return work

    def step(self) -> CostItem:
        """The student's steps."""
        learn, whole = self._student_step(self.timed), self.training.batch_size
        kept, least = self._first(learn)
        self._note_peak(STUDENT, kept, self.timed, whole)
        each = cost_of(learn, self.device, self.timed, self.budget, least, self.clock).of_images(whole)
        if self.timed < whole and each.seconds <= self.whole:
            each = cost_of(self._student_step(whole), self.device, whole, 0.0, least=0, clock=self.clock)
        return CostItem(what=STUDENT, often=self.training.steps, each=each)

    def answers(self) -> None:
        """Note what answers need that no backward pass follows: the teacher's to a batch, both networks' when they are
        compared and scored."""
        look = synthetic_batch(self.task.image_size, self.device)
        alone = peak_of(partial(torch.no_grad()(self.teacher), look))
        self._note_peak(STUDENT, alone, len(look), self.training.batch_size)
        self.peaks[ANSWERS] = compared(self.task, self.teacher, self.student, look, scored=self.scored)

    def kept(self) -> int:
        """Bytes that a step of the student on `timed` images keeps for its backward pass, at the peak."""
        return self._kept_by(self._student_step(self.timed))

    def _student_step(self, count: int) -> Callable[[], None]:
        """A step of the student on `count` images."""
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
            student_step.learn(self.small.sample(count), 0)
            watch.look()

        return learn

    def _first(self, work: Callable[[], None]) -> tuple[int, int]:
        """Bytes that `work` keeps, done for the first time; and how often at least it is to be timed then.

        What takes long is timed once: the machine's noise matters little to it.
        """
        began = self.clock()
        kept = self._kept_by(work)
        return kept, 0 if self.clock() - began > self.budget / 2 else 2

    def _kept_by(self, work: Callable[[], None]) -> int:
        with watched_memory([self.teacher, self.student]) as memory:
            work()
        return memory.peak

    def validation_images(self, n: int) -> Tensor:
        """(up to n, 3, H, W): as many as the whole run will have at its end, those of here repeated."""
        images = self.small.validation_images(n)
        if not len(images):
            return images
        return images[torch.arange(self.set_aside([self.training.steps], n), device=images.device) % len(images)]

    def set_aside(self, steps: Sequence[int], n: int) -> int:
        """How many validation images the run has at `steps`, n at most at each, in all."""
        source, size = self.source, self.source.update_size()
        if not (source.finishes and source.bank_images() and size is not None):
            return len(steps) * min(n, len(self.small.validation_images(n)))
        made = (source.count_due(range(-source.warmup, step)) * size.images for step in steps)
        return sum(min(n, held_out(images)) or n for images in made)  # noise stands in for none

    def update(self, part: ImageSource, full: ImageSource, step: int) -> Cost:
        """An update with all iterations and images of `full`, by `part`, which is attached and has few."""
        unknown = UpdateSize(images=self.timed)
        small, whole = part.update_size() or unknown, full.update_size() or unknown
        sizes: list[int] | None = None

        def update() -> None:
            part.update(self.student, step)
            if sizes is not None:
                sizes.append(size_of(part.state_dict()))

        kept, least = self._first(update)
        self._note_peak(type(full).__name__, kept, small.images, whole.images)
        sizes = None if least else [size_of(part.state_dict())]
        once = cost_of(update, self.device, small.images, self.budget, least, self.clock)
        total, longer_by = once, _MORE if least else 1
        for stage, iterations in enumerate(whole.iterations):
            counts = tuple(1 + longer_by * (stage == other) for other in range(len(small.iterations)))
            part.resize_updates(replace(small, iterations=counts))
            longer = cost_of(update, self.device, small.images, self.budget, min(least, 1), self.clock)
            part.resize_updates(small)
            more = longer + once.times(-1)
            total = total + more.times((iterations - 1) / longer_by if more.seconds > 0 else 0.0)
        if sizes is not None:
            self.grown[id(full), step] = Growth.of(sizes, small.images, len(sizes) * small.images)
        total = total.of_images(whole.images)
        if small.images < whole.images and total.seconds <= self.whole:
            part.resize_updates(whole)
            total = cost_of(update, self.device, whole.images, 0.0, least=0, clock=self.clock)
            part.resize_updates(small)
        return total

    def state_bytes(self, steps: range) -> int:
        """Bytes of the source's state when its banks are full: that of a few updates, with what they lack.

        Updates that are slow were noted while they were timed; of others a new source makes a few.
        """
        total, fresh = 0.0, list[ImageSource]()
        for index, full in enumerate(self.source.updated_sources()):
            due = [(step, often) for step, often in early_and_late(full, steps) if often]
            part, noted = self.small.updated_sources()[index], [self.grown.get((id(full), step)) for step, _ in due]
            grown = [growth for growth in noted if growth is not None]
            if len(grown) < len(due) or not due:
                fresh = fresh or self._attached(2, None).updated_sources()
                part = fresh[index]
                grown = self._grown_by_a_few(part, [step for step, _ in due])
            whole = full.update_size() or UpdateSize(images=0)
            # Of updates that keep what they make: early ones may not.
            keeping = [(growth, often) for growth, (_, often) in zip(grown, due, strict=True) if growth.each > 0]
            if keeping:
                room, each = full.bank_images(), min(growth.each for growth, _ in keeping)
                made = sum(often * whole.images for _, often in keeping)
                total += each * (min(room, made) - min(room, sum(growth.made for growth, _ in keeping)))
            total += size_of(part.state_dict())
        return round(total)

    def _grown_by_a_few(self, part: ImageSource, steps: list[int]) -> list[Growth]:
        """How the state of a new source grows at each of `steps`; the last first, as it sets most up."""
        few, grown, images = _FEW, list[Growth](), (part.update_size() or UpdateSize(images=1)).images
        for step in reversed(steps):
            sizes, began = [size_of(part.state_dict())], self.clock()
            while len(sizes) <= _SETTLED and (len(sizes) <= few or self.clock() - began < self.budget):
                part.update(self.student, step)
                sizes.append(size_of(part.state_dict()))
            # What is to be set up is, by the first.
            grown.append(Growth.of(sizes if few == 1 else sizes[1:], images, (len(sizes) - 1) * images))
            few = 1
        return grown[::-1]

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

    def _note_peak(self, what: str, peak: int, count: int, whole: int) -> None:
        self.peaks[what] = max(self.peaks.get(what, 0), math.ceil(peak * whole / count))


def clock_of(device: torch.device) -> Callable[[], float]:
    """What seconds are counted by: on a CPU processor time of the thread that computes, which other work on the machine
    does not change; wall time elsewhere.
    """
    return time.thread_time if device.type == "cpu" else time.perf_counter


def shrink(source: ImageSource, most: int) -> None:
    """Make the updates of a source, and of those that it holds, of `most` images or fewer, one iteration a stage."""
    for each in source.all_sources():
        if (size := each.update_size()) is not None:
            images = max(2, min(size.images, most))
            each.resize_updates(UpdateSize(images=images, iterations=(1,) * len(size.iterations)))
