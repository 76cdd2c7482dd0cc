"""The training loop: an image source makes images, the frozen teacher answers, the student learns the answers.

Steps count from `-source.warmup` (the source works alone) over 0 (the student's first step) to `training.steps`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datafree.distributed import replicas
from datafree.engine import out_of_memory, validation
from datafree.engine.nonfinite import NotFinite, Watch
from datafree.engine.out_of_memory import OutOfMemory
from datafree.engine.progress import SAVED_WITHIN, Progress
from datafree.engine.recovery import SOURCE_UPDATE, STUDENT_STEP, Recovery
from datafree.engine.student_step import StudentStep
from datafree.errors import DataError, Interrupted, TrainingError
from datafree.health.verdict import VerdictTracker
from datafree.networks import features
from datafree.ops import modes
from datafree.recipe.training import Training
from datafree.sources.base import ImageSource
from datafree.storage.shared_run import RunDirectory
from datafree.tasks.base import Task, synthetic_batch


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The step whose student is kept, and its agreement with the teacher on held-out images (fraction of rows)."""

    step: int
    agreement: float | None  # None where the source has nothing to hold out
    history: list[str] = field(default_factory=list)  # each time the run had to go back to an earlier state


def distill(
    *,
    task: Task,
    teacher: nn.Module,
    student: nn.Module,
    source: ImageSource,
    training: Training,
    run: RunDirectory,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Chosen:
    """Train `student` in place until it holds the chosen weights; everything is saved in `run` on the way.

    `teacher` and `student` take images (B, 3, H, W) in [0, 1] and answer in the task's form. `stop` is asked at every
    step: a reason to stop saves the state and raises Interrupted; the same call goes on later, to the same bits.
    Numbers that are not finite, and memory that runs out, take it back to the last good state (`coping`); raises
    TrainingError when that does not help, RunError when the state cannot be saved.
    """
    device, dtype = next(student.parameters()).device, _dtype_of(student)
    coping, watch = Recovery(), Watch(device)
    with modes.frozen(teacher), watch.answers_of(teacher):
        source.attach(training.source_context(task, teacher, device, dtype, say, lr_scale=lambda: coping.pace))
        pairs: Mapping[str, str] = {}  # teacher's layer -> student's, whose attention maps are compared
        if training.attention_weight or training.attention_layers:  # what was named is looked for in any case
            pairs = features.chosen_pairs(
                teacher, student, synthetic_batch(task.image_size, device), training.attention_layers
            )
        if not training.attention_weight:
            if training.attention_layers:
                say("note: training.attention_layers has no effect, training.attention_weight is 0")
            pairs = {}
        optimizer = training.make_optimizer(student)
        learner = StudentStep(
            task=task,
            teacher=teacher,
            student=student,
            training=training,
            optimizer=optimizer,
            pairs=pairs,
            watch=watch,
            coping=coping,
        )
        if training.select == "agreement" and not len(source.validation_images(1)):
            raise DataError("training.select=agreement needs images to hold out, and this source has none; use last")
        best: dict[str, Any] = {"agreement": None, "step": 0, "student": {}}
        latest: dict[str, Tensor | float] = {}  # figures since the last line of the log
        health = VerdictTracker()
        step = first = -source.warmup
        good, saved_at = first, time.monotonic()  # the step of the state on disk; when it was written

        def save(*, must: bool = False) -> None:
            nonlocal good, saved_at
            state = {
                "step": step,
                "student": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "source": source.state_dict(),
                "best": best,
                "latest": {name: float(value) for name, value in latest.items()},
                "coping": coping.state_dict(),
                "random": modes.random_state(),
            }
            watch.check_state(state)
            saved_at = time.monotonic()
            if run.save_state(state, must=must):
                good = step

        def restore(state: dict[str, Any]) -> None:
            nonlocal step, best, latest, good
            step = good = state["step"]
            best, latest = state["best"], dict(state["latest"])
            student.load_state_dict(state["student"])
            optimizer.load_state_dict(state["optimizer"])
            source.load_state_dict(state["source"])
            modes.set_random_state(state["random"])  # last: nothing may draw after it

        # Go on from the last save; there is always one, so that a step that goes wrong has a state to go back to.
        if run.saved is not None:
            coping.load_state_dict(run.saved["coping"])
            restore(run.saved)
        run.start(step - first, say)
        began, began_at = time.perf_counter(), step
        if run.saved is None:
            save(must=True)

        student.train()
        while step < training.steps:
            try:
                if reason := stop():
                    watch.look(wait=True)
                    save(must=True)
                    raise Interrupted(
                        f"stopped at step {step} of {training.steps} ({reason}); the same command goes on from here"
                    )
                watch.begin(step)

                # The source works: alone before step 0, then when its turn comes.
                if source.due(step):
                    try:
                        with out_of_memory.noticed(SOURCE_UPDATE):
                            figures: Mapping[str, Tensor] = source.update(student, step)
                    except TrainingError:
                        with contextlib.suppress(TrainingError, NotFinite):  # the first fault is the one to show
                            save()  # a source that gives up has gone back to its last healthy state
                        raise
                    for name, value in figures.items():
                        watch.see(f"the source's {name}", [value])
                    watch.look()
                    latest |= figures

                # The student learns the teacher's answers.
                if step >= 0:
                    with out_of_memory.noticed("the source's images"):
                        batch = source.sample(training.batch)
                    if step == 0 and training.label_weight and batch.targets is None:
                        say("note: training.label_weight is off: the source's images have no targets")
                    with out_of_memory.noticed(STUDENT_STEP):
                        latest |= learner.learn(batch, step)
                for name, network in source.artefacts().items():  # sampling may move running averages
                    weights = network.parameters() if source.due(step) else ()
                    watch.see(f"the source's {name}", [*weights, *network.buffers()])
                watch.look()
                step += 1

                # Log, look and save now and then; none of it touches a random state.
                logs, last = step % training.log_every == 0 or step in (0, training.steps), step == training.steps
                shows = step % training.picture_every == 0 or step in (0, training.steps)
                compares = step % training.save_every == 0 or last
                if logs or shows or compares:
                    watch.look(wait=True)  # before anything is written
                if logs:
                    numbers, latest = {name: float(value) for name, value in latest.items()}, {}
                    run.log(step - first, step, numbers)
                    phase: Literal["warm-up", "training"] = "training" if step > 0 else "warm-up"
                    if phase == "training" and began_at < 0:  # the rate is the phase's own
                        began, began_at = time.perf_counter(), step
                    rate = (step - began_at) / max(time.perf_counter() - began, 1e-9)
                    log(Progress(phase=phase, step=step, first=first, last=training.steps, rate=rate, values=numbers))
                with out_of_memory.noticed("the look at held-out images"):
                    if shows:
                        shown = validation.picture(task, teacher, student, source, trained=step > 0)
                        if shown is not None:
                            run.save_picture(step - first, shown)
                    if compares and step > 0:
                        looked = validation.signals(task, teacher, student, source)
                        agreement = looked.get("agreement")
                        if looked:
                            run.log(step - first, step, looked)
                            if turned := health.line(step, looked):
                                say(turned)
                        if training.select == "last":
                            best = {"agreement": agreement, "step": step, "student": {}}
                        elif best["agreement"] is None or (agreement or 0.0) > best["agreement"]:
                            kept = {name: value.clone() for name, value in student.state_dict().items()}
                            best = {"agreement": agreement, "step": step, "student": kept}
                overdue = "overdue" if time.monotonic() - saved_at > SAVED_WITHIN else None
                if compares or replicas.all_agree(overdue):
                    watch.look(wait=True)
                    save(must=last)

            # Numbers that are not finite, or no memory: back to the last good state, with something changed.
            except (NotFinite, OutOfMemory) as fault:
                optimizer.zero_grad()
                if isinstance(fault, NotFinite):
                    evidence = {**fault.evidence, "what": str(fault), "good": good, "student": student.state_dict()}
                    file = run.save_fault(fault.step - first, evidence)
                    line = coping.with_numbers(fault, training, good, f" ({file} holds the step)" if file else "")
                else:
                    line = coping.with_memory(fault, training, good, source, student, step)
                say(line)
                watch.forget()
                back = run.last_state()
                assert back is not None
                restore(back)
                run.start(step - first, say)
                save()  # what was changed is not forgotten, whatever happens next

        if training.select == "agreement":
            student.load_state_dict(best["student"])
    return Chosen(step=best["step"], agreement=best["agreement"], history=list(coping.history))


def _dtype_of(network: nn.Module) -> torch.dtype:
    """The precision of forward passes: the one its wrapper runs it in."""
    dtype = getattr(network, "dtype", torch.float32)
    assert isinstance(dtype, torch.dtype)
    return dtype
