"""What a teacher and a run cost on this machine: a few timed passes, extrapolated.

Everything is timed with few images and few iterations and grows in proportion to both, so that an estimate takes
seconds where the run takes hours. Memory is what the backward pass keeps, counted, beside weights and the bank.

B images, H x W pixels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from datafree import modes
from datafree.networks.detectors import Predictions
from datafree.sources.base import ImageSource, Setting
from datafree.tasks.base import Task, synthetic_batch
from datafree.training import Training

PASS = 0.3  # seconds that a timed pass of the teacher may take, forward and backward
_MORE = 4  # iterations by which a second timing of an update is longer than the first


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
    assumed: list[str]


def cost_of_teacher(network: nn.Module, size: tuple[int, int], device: torch.device, batch_size: int) -> TeacherCost:
    """Time a network on images in [0, 1] of `size` (height, width): up to `batch_size` of them, if that takes no long.

    Whatever it answers will do: gradients are those of the answer's squares.
    """

    def backward() -> None:
        _backward(network, _images(size, device, count))

    count = 1
    with modes.frozen(network):
        each = _timed(backward, device, times=1)  # the first pass also sets things up
        if each < 4 * PASS:
            each = _timed(backward, device)
        count = max(1, min(batch_size, int(PASS / max(each, 1e-9))))
        with watched_memory([network]) as memory:
            backward()
        if count > 1:
            each = _timed(backward, device) / count
        images = _images(size, device, count)
        with torch.no_grad():
            forward = _timed(lambda: network(images), device) / count
    return TeacherCost(images=count, forward=forward, backward=each, kept=math.ceil(memory.peak / count))


def cost_of_run(
    *,
    task: Task,
    teacher: nn.Module,
    student: nn.Module,
    source: ImageSource,
    training: Training,
    known: TeacherCost,
    dtype: torch.dtype,
) -> RunCost:
    """Time updates of a small form of `source` and steps of `student`, which are changed by it; `source` is not.

    `known` is the teacher's cost. Raises DatafreeError where the source refuses the teacher or its own options.
    """
    device = next(teacher.parameters()).device
    count = max(2, min(known.images, training.batch_size))
    small = _smaller(copy.deepcopy(source), count)
    with modes.frozen(teacher):
        small.attach(
            Setting(
                task=task,
                teacher=teacher,
                steps=training.steps,
                batch_size=count,
                seed=training.seed,
                device=device,
                dtype=dtype,
            )
        )
        total, updates, peak, bank = 0.0, 0, 0, 0
        for part, full in zip(_parts(small), _parts(source), strict=True):
            due = sum(full.due(step) for step in range(-source.warmup, training.steps))
            if not due:
                continue
            with watched_memory([teacher, student]) as memory:
                each = _update(part, full, student, device)
            more = getattr(full, "batch_size", count) / count
            updates, total = updates + due, total + due * each * more
            peak = max(peak, math.ceil(memory.peak * more))
            held = min(getattr(full, "bank_size", 0), due * getattr(full, "batch_size", 0))
            bank += held * 3 * math.prod(task.image_size)  # 8 bits a channel

        optimizer = training.make_optimizer(student.train())

        def learn() -> None:
            images = small.sample(count).images
            with torch.no_grad():
                answers = teacher(images)
            loss = task.distill_loss(student(images), answers)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

        with watched_memory([teacher, student]) as memory:
            learn()
        seconds = _timed(learn, device)
    step = seconds / count * training.batch_size
    peak = max(peak, math.ceil(memory.peak / count * training.batch_size))
    copies = 4 if training.optimizer == "adam" else 3  # the weights, their gradients, what the optimiser keeps
    return RunCost(
        updates=updates,
        update=total / updates if updates else 0.0,
        steps=training.steps,
        step=step,
        seconds=total + step * training.steps,
        memory=size_of(teacher) + copies * size_of(student) + peak + bank,
        assumed=[
            f"time and memory grow with the images, {count} of which were timed at once",
            "time grows with the iterations of an update",
            "nothing else than now is running; saves, pictures, scores and attention maps are not counted",
        ],
    )


def size_of(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(values.numel() * values.element_size() for values in (*network.parameters(), *network.buffers()))


def _images(size: tuple[int, int], device: torch.device, count: int) -> Tensor:
    return synthetic_batch(size, device)[:1].repeat(count, 1, 1, 1)


def _backward(network: nn.Module, images: Tensor) -> None:
    """A pass and back to the images."""
    outputs = network(images.requires_grad_())
    parts = outputs.heads if isinstance(outputs, Predictions) else [outputs]
    torch.autograd.backward(torch.stack([part.float().square().sum() for part in parts]).sum())


def _timed(work: Callable[[], object], device: torch.device, times: int = 2) -> float:
    """The seconds that `work` takes: the least of a few times."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return min(taken)


# --- sources made small ---


def _parts(source: ImageSource) -> list[ImageSource]:
    """A source that mixes others, taken apart."""
    parts = getattr(source, "parts", None)
    return [part for each in parts for part in _parts(each)] if isinstance(parts, list) else [source]


def _smaller(source: ImageSource, count: int) -> ImageSource:
    """The same with updates of `count` images, one iteration each where it has such."""
    parts = getattr(source, "parts", None)
    if isinstance(parts, list):
        changes: dict[str, Any] = {"parts": [_smaller(part, count) for part in parts]}
        return replace(source, **changes)
    changes = {"batch_size": count} if isinstance(getattr(source, "batch_size", None), int) else {}
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


def _update(part: ImageSource, full: ImageSource, student: nn.Module, device: torch.device) -> float:
    """Seconds of an update with all iterations of `full`, and as few images as `part`, attached, has."""
    part.update(student, 0)
    seconds = _timed(lambda: part.update(student, 0), device)
    total = seconds
    for name, index, count in _iterations(full):
        _set_iterations(part, name, index, 1 + _MORE)
        longer = _timed(lambda: part.update(student, 0), device)
        _set_iterations(part, name, index, 1)
        total += (count - 1) * max(longer - seconds, 0.0) / _MORE
    return total


# --- memory ---


@dataclass
class Memory:
    """Bytes that backward passes keep: `now`, and at the `peak`. Tensors that share their values count once."""

    now: int = 0
    peak: int = 0
    held: dict[int, int] = field(default_factory=dict)  # address of the values -> how often they are kept

    def keep(self, tensor: Tensor) -> None:
        """Count a tensor."""
        values = tensor.untyped_storage()
        if self.held.setdefault(values.data_ptr(), 0) == 0:
            self.now += values.nbytes()
            self.peak = max(self.peak, self.now)
        self.held[values.data_ptr()] += 1

    def drop(self, tensor: Tensor) -> None:
        """Count it no more."""
        values = tensor.untyped_storage()
        self.held[values.data_ptr()] -= 1
        if self.held[values.data_ptr()] == 0:
            self.now -= values.nbytes()


class _Kept:
    """A tensor that a graph holds for its backward pass."""

    def __init__(self, memory: Memory, tensor: Tensor) -> None:
        self.memory, self.tensor = memory, tensor
        memory.keep(tensor)

    def __del__(self) -> None:
        self.memory.drop(self.tensor)


@contextmanager
def watched_memory(networks: list[nn.Module]) -> Iterator[Memory]:
    """Within it, what graphs keep for their backward passes is counted, the networks' own values left out."""
    memory = Memory()
    own = {values.untyped_storage().data_ptr() for n in networks for values in (*n.parameters(), *n.buffers())}

    def pack(tensor: Tensor) -> Tensor | _Kept:
        return tensor if tensor.untyped_storage().data_ptr() in own else _Kept(memory, tensor)

    def unpack(kept: Tensor | _Kept) -> Tensor:
        return kept.tensor if isinstance(kept, _Kept) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield memory
