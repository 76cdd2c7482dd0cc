"""The training loop: an image source makes images, the frozen teacher answers, the student learns the answers.

Steps count from `-source.warmup` (the source works alone) over 0 (the student's first step) to `training.steps`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datafree import augment, features, held_out, modes
from datafree.errors import DataError, Interrupted, TrainingError
from datafree.networks.normalized import bare
from datafree.runs import Run
from datafree.sources.base import Batch, ImageSource
from datafree.tasks.base import Task, synthetic_batch
from datafree.training import Training


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is, for displays."""

    phase: Literal["warm-up", "training", "images"]  # images: a data set, counted in images and not in steps
    step: int
    first: int  # -warmup
    last: int  # steps
    rate: float  # steps (images) a second in this phase and this process; 0 when not yet known
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The step whose student is kept, and its agreement with the teacher on held-out images (fraction of rows)."""

    step: int
    agreement: float | None  # None where the source has nothing to hold out


def distill(
    *,
    task: Task,
    teacher: nn.Module,
    student: nn.Module,
    source: ImageSource,
    training: Training,
    run: Run,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Chosen:
    """Train `student` in place until it holds the chosen weights; everything is saved in `run` on the way.

    `teacher` and `student` take images (B, 3, H, W) in [0, 1] and answer in the task's form. `stop` is asked at every
    step: a reason to stop saves the state and raises Interrupted; the same call goes on later, to the same bits.
    Raises TrainingError when a loss is not finite.
    """
    device, dtype = next(student.parameters()).device, _dtype_of(student)
    with modes.frozen(teacher):
        source.attach(training.setting(task, teacher, device, dtype, say))
        pairs: Mapping[str, str] = {}  # teacher's layer -> student's, whose attention maps are compared
        if training.match_weight:
            pairs = features.chosen_pairs(teacher, student, synthetic_batch(task.image_size, device), training.match)
        optimizer = training.make_optimizer(student)
        if training.select == "agreement" and not len(source.held_out(1)):
            raise DataError("training.select=agreement needs images to hold out, and this source has none; use last")
        best: dict[str, Any] = {"agreement": None, "step": 0, "student": {}}
        latest: dict[str, Tensor | float] = {}  # figures since the last line of the log
        step = first = -source.warmup

        # Go on from the last save, if there is one. The random states come last: nothing may draw after them.
        if run.saved is not None:
            step, best, latest = run.saved["step"], run.saved["best"], run.saved["latest"]
            student.load_state_dict(run.saved["student"])
            optimizer.load_state_dict(run.saved["optimizer"])
            source.load_state_dict(run.saved["source"])
            modes.set_random_state(run.saved["random"])
        run.start(step - first)
        began, began_at = time.perf_counter(), step

        def save() -> None:
            _check_finite(student, step)
            run.save_state(
                {
                    "step": step,
                    "student": student.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "source": source.state_dict(),
                    "best": best,
                    "latest": _floats(latest, step),
                    "random": modes.random_state(),
                }
            )

        student.train()
        while step < training.steps:
            if reason := stop():
                save()
                raise Interrupted(
                    f"stopped at step {step} of {training.steps} ({reason}); the same command goes on from here"
                )

            # The source works: alone before step 0, then when its turn comes.
            if source.due(step):
                try:
                    latest |= source.update(student, step)
                except TrainingError:
                    with contextlib.suppress(TrainingError):  # the first fault is the one to show
                        save()  # a source that gives up has gone back to its last healthy state
                    raise

            # The student learns the teacher's answers.
            if step >= 0:
                batch = source.sample(training.batch_size)
                images, targets, whole = _varied(task, batch, training)
                if step == 0 and training.label_weight and targets is None:
                    say("note: training.label_weight is off: the source's images have no targets")
                with torch.no_grad(), features.watched(bare(teacher), pairs) as taught:
                    answers = teacher(images)
                with features.watched(bare(student), pairs.values()) as learnt:
                    outputs = student(images)
                loss = task.distill_loss(outputs, answers)
                if pairs:
                    attention = features.attention_loss(learnt, taught, pairs)
                    latest["attention"] = attention.detach()
                    loss = loss + training.match_weight * attention
                if training.label_weight and targets is not None and len(whole):
                    loss = loss + training.label_weight * task.target_loss(outputs[whole], targets[whole])
                for group in optimizer.param_groups:
                    group["lr"] = training.lr_at(step)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                latest["loss"] = loss.detach()
            step += 1

            # Log, look and save now and then; none of it touches a random state.
            if step % training.log_every == 0 or step in (0, training.steps):
                figures, latest = _floats(latest, step), {}
                run.log(step - first, step, figures)
                phase: Literal["warm-up", "training"] = "training" if step > 0 else "warm-up"
                if phase == "training" and began_at < 0:  # the rate is the phase's own
                    began, began_at = time.perf_counter(), step
                rate = (step - began_at) / max(time.perf_counter() - began, 1e-9)
                log(Progress(phase=phase, step=step, first=first, last=training.steps, rate=rate, values=figures))
            if step % training.picture_every == 0 or step in (0, training.steps):
                shown = held_out.picture(task, teacher, student, source, trained=step > 0)
                if shown is not None:
                    run.save_picture(step - first, shown)
            if step % training.save_every == 0 or step == training.steps:
                if step > 0:
                    looked = held_out.signals(task, teacher, student, source)
                    agreement = looked.get("agreement")
                    if looked:
                        run.log(step - first, step, looked)
                    if training.select == "last":
                        best = {"agreement": agreement, "step": step, "student": {}}
                    elif best["agreement"] is None or (agreement or 0.0) > best["agreement"]:
                        kept = {name: value.clone() for name, value in student.state_dict().items()}
                        best = {"agreement": agreement, "step": step, "student": kept}
                save()

        if training.select == "agreement":
            student.load_state_dict(best["student"])
    return Chosen(step=best["step"], agreement=best["agreement"])


def _varied(task: Task, batch: Batch, training: Training) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the student sees of a batch: images, targets moved with them, the indices of images that are no mixture."""
    images, targets = batch.images, batch.targets
    if training.shift:
        images, move = augment.shift_and_flip(images, training.shift, task.edges)
        targets = None if targets is None else task.move_targets(targets, move)
        images = images.clamp(0, 1)  # interpolation rounds
    if training.mixup:
        images, whole = augment.blend(images, training.mixup)
        return images, targets, whole
    return images, targets, torch.arange(len(images), device=images.device)


def _dtype_of(network: nn.Module) -> torch.dtype:
    """The precision of forward passes: the one its wrapper runs it in."""
    dtype = getattr(network, "dtype", torch.float32)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _floats(values: Mapping[str, Tensor | float], step: int) -> dict[str, float]:
    figures = {name: float(value) for name, value in values.items()}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} at step {step}; the state before is kept: lower training.lr or the source's weights"
            )
    return figures


def _check_finite(network: nn.Module, step: int) -> None:
    """Never save a weight that is not finite."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(
                f"the student's {name} is not finite at step {step}; nothing was saved over the last good state"
            )
