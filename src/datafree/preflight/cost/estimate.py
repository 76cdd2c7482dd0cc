"""Estimates of time and memory of a teacher and a run, extrapolated from a few timed passes.

Memory is what backward passes keep and answers need, counted, beside weights and the bank.

B images, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datafree.networks.normalized import device_of, size_of
from datafree.ops import modes
from datafree.ops.predictions import raw_tensors
from datafree.preflight.cost.activation_memory import watched_memory
from datafree.preflight.cost.banks import banks_of
from datafree.preflight.cost.calibration import Calibration, CostItem, clock_of
from datafree.recipe.training import Training
from datafree.sources.base import Batch, ImageSource
from datafree.tasks.base import Task, synthetic_batch

SLOW = 0.05  # seconds an image of a teacher's pass forward and back, from which the rest of a plan takes a while
PASS = 0.3  # seconds that a timed pass of the teacher may take, forward and backward


@dataclass(frozen=True, kw_only=True)
class TeacherCost:
    """The teacher on this machine, timed with `images` at once."""

    images: int
    forward: float  # seconds an image
    backward: float  # seconds an image, forward and backward to the images
    kept: int  # bytes an image that the backward pass needs


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """A whole run on this machine."""

    updates: int  # of the source, warm-up included
    update: float  # seconds each, on average
    steps: int  # of the student
    step: float  # seconds each
    seconds: float  # of all of them
    memory: int  # bytes at the peak
    work: list[
        CostItem
    ]  # the same taken apart: each part of the source before the student's steps and beside them; those
    assumed: list[str]


def cost_of_teacher(
    network: nn.Module, size: tuple[int, int], device: torch.device, batch_size: int, pass_seconds: float | None = None
) -> TeacherCost:
    """Time a network on images in [0, 1] of `size` (height, width): up to `batch_size`, in `pass_seconds` (`PASS`).

    Whatever it answers will do: gradients are those of the answer's squares.
    """

    def backward() -> None:
        _backward(network, _images(size, device, count))

    count, seconds = 1, PASS if pass_seconds is None else pass_seconds
    with modes.frozen(network):
        each = timed(backward, device, times=1)  # the first pass also sets things up
        if each < 4 * seconds:
            each = timed(backward, device, times=2 if each < seconds / 2 else 1)
        count = max(1, min(batch_size, int(seconds / max(each, 1e-9))))
        with watched_memory([network]) as memory:
            backward()
        if count > 1:
            each = timed(backward, device) / count
        images = _images(size, device, count)
        with torch.no_grad():
            forward = timed(lambda: network(images), device) / count
    return TeacherCost(images=count, forward=forward, backward=each, kept=math.ceil(memory.peak / count))


def seconds_of_passes(source: ImageSource, training: Training, known: TeacherCost) -> float:
    """What a run takes at least: the teacher's answers to all batches, its gradients in all updates."""
    seconds = training.steps * training.batch_size * known.forward
    for each in source.updated_sources():
        size = each.update_size()
        if size is not None:
            often = each.count_due(range(-each.warmup, training.steps))
            seconds += often * size.images * max(1, sum(size.iterations)) * known.backward
    return seconds


@contextmanager
def calibration(
    *,
    task: Task,
    teacher: nn.Module,
    student: nn.Module,
    source: ImageSource,
    training: Training,
    known: TeacherCost,
    dtype: torch.dtype,
    scored: bool = False,
    pass_seconds: float | None = None,
    on_finished_batch: Callable[[Batch], None] | None = None,
) -> Iterator[Calibration]:
    """Within it a run made small is at hand, the teacher frozen; `student` is changed by it, `source` is not.

    `known` is the teacher's cost; `pass_seconds` are what a timed pass of it may take (`PASS`). Raises DatafreeError
    where the source refuses the teacher or its own options.
    """
    seconds = PASS if pass_seconds is None else pass_seconds
    with modes.frozen(teacher):
        yield Calibration(
            task=task,
            teacher=teacher,
            student=student,
            source=source,
            training=training,
            dtype=dtype,
            most=max(2, int(seconds / max(known.backward, 1e-9))),
            budget=3 * seconds,
            clock=clock_of(device_of(teacher)),
            scored=scored,
            on_finished_batch=on_finished_batch,
        )


def run_cost(calibrated: Calibration) -> RunCost:
    """What updates of the source and steps of the student cost, and memory."""
    training = calibrated.training
    work = calibrated.updates(range(-calibrated.source.warmup, training.steps))
    step = calibrated.step()
    calibrated.answers()
    updates, total = sum(part.often for part in work), sum(part.seconds for part in work)
    return RunCost(
        updates=updates,
        update=total / updates if updates else 0.0,
        steps=training.steps,
        step=step.each.seconds,
        seconds=total + step.seconds,
        memory=memory_of(calibrated),
        work=[*work, step],
        assumed=[
            f"time and memory grow with the images, {calibrated.timed} of which were timed at once",
            "time grows with the iterations of an update",
            "nothing else than now is running; saves, pictures and scores are not counted",
        ],
    )


def memory_of(calibrated: Calibration) -> int:
    """Bytes at the peak of a run, of what was timed: networks, what a pass takes, full banks."""
    training = calibrated.training
    banks = banks_of(calibrated.source, training, calibrated.task.image_size, calibrated.device)
    copies = 4 if training.optimizer == "adam" else 3  # the weights, their gradients, what the optimiser keeps
    copies += bool(training.ema)
    return size_of(calibrated.teacher) + copies * size_of(calibrated.student) + calibrated.peak + banks


def _images(size: tuple[int, int], device: torch.device, count: int) -> Tensor:
    return synthetic_batch(size, device)[:1].repeat(count, 1, 1, 1)


def _backward(network: nn.Module, images: Tensor) -> None:
    """A pass and back to the images."""
    parts = [part for part in raw_tensors(network(images.requires_grad_())) if part.requires_grad]
    if parts:  # else it only answers
        torch.autograd.backward(torch.stack([part.float().square().sum() for part in parts]).sum())


def timed(work: Callable[[], object], device: torch.device, times: int = 2) -> float:
    """The seconds that `work` takes on `device`, from its beginning to its end there: the least of a few times."""
    taken, clock = [], clock_of(device)
    for _ in range(times):
        modes.wait_for(device)
        began = clock()
        work()
        modes.wait_for(device)
        taken.append(clock() - began)
    return min(taken)
