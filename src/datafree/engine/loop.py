"""The training loop: an image source makes images, the frozen teacher answers, the student learns the answers.

Steps count from `-source.warmup` (the source works alone) over 0 (the student's first step) to `training.steps`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from datafree.distributed import divided, own_state, replicas
from datafree.engine import out_of_memory, validation
from datafree.engine.nonfinite import NotFinite, Watch
from datafree.engine.origin import TEACHER, origin_of
from datafree.engine.out_of_memory import OutOfMemory
from datafree.engine.progress import Progress, StepRate, place
from datafree.engine.recovery import SOURCE_UPDATE, STUDENT_STEP, Recovery
from datafree.engine.rehearsal import least_images
from datafree.engine.student_init import start_student
from datafree.engine.student_step import StudentStep
from datafree.engine.train_state import BestStudent, TrainState
from datafree.engine.weight_average import WeightAverage
from datafree.errors import DataError, Interrupted, TrainingError
from datafree.networks import features
from datafree.ops import modes
from datafree.recipe.training import Training
from datafree.sources.base import ImageSource, attach
from datafree.storage.shared_run import RunDirectory
from datafree.tasks.base import Task, synthetic_batch


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The step whose student is kept, and its agreement with the teacher on validation images (fraction of rows)."""

    step: int
    agreement: float | None  # None where the source has no images to hold out
    history: list[str] = field(default_factory=list)  # a line for each rollback to an earlier checkpoint
    start: list[str] = field(default_factory=list)  # how the student started, where it started from its teacher
    remarks: list[str] = field(default_factory=list)  # what was another from one piece to the next; a collapse


def distill(
    *,
    task: Task,
    teacher: nn.Module,
    student: nn.Module,
    source: ImageSource,
    training: Training,
    run: RunDirectory,
    init: Literal["random", "teacher"] = "random",
    class_names: Sequence[str] = (),
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Chosen:
    """Train `student` in place until it holds the chosen weights; everything is saved in `run` on the way.

    `teacher` and `student` take images (B, 3, H, W) in [0, 1] and answer in the task's form. `stop` is asked at every
    step: a reason to stop saves the state and raises Interrupted; the same call resumes later, to the same bits.
    `class_names`: in the order of the teacher's outputs, as far as anyone has named them.
    `init`: the student's own first weights, or its teacher's, cut and refitted at step 0 on the source's images.
    Numbers that are not finite, and memory that runs out, roll the run back to its last checkpoint (`recovery`); raises
    TrainingError when that does not help, RunError when the state cannot be saved.
    """
    device, dtype = next(student.parameters()).device, _dtype_of(student)
    recovery, watch = Recovery(), Watch(device)
    with modes.frozen(teacher), watch.answers_of(teacher):
        context = training.source_context(
            task, teacher, device, dtype, say, lr_scale=lambda: recovery.pace, class_names=class_names
        )
        attach(source, context)
        own_state.require_same_start(source.state_dict)
        divided.seed(training.seed)
        student_step = StudentStep(
            task=task,
            teacher=teacher,
            student=student,
            training=training,
            pairs=_paired_layers(task, teacher, student, training, say),
            optimizer=training.make_optimizer(student),
            watch=watch,
            recovery=recovery,
        )
        if training.select == "agreement" and not len(source.validation_images(1)):
            why = "".join(f" ({note})" for note in source.notes())
            raise DataError(
                f"training.select=agreement needs validation images, and this source has none{why}; use last"
            )
        state = TrainState(
            run=run,
            student=student,
            optimizer=student_step.optimizer,
            source=source,
            recovery=recovery,
            watch=watch,
            average=WeightAverage(momentum=training.ema),
            origin=origin_of(teacher),
        )
        divided.require_alike({TEACHER: state.origin[TEACHER]})

        # Resume from the last checkpoint; there is always one, so that a faulty step can be rolled back.
        if run.saved is not None:
            told = len(run.saved.get("remarks", []))
            state.resume(run.saved)
            for line in state.remarks[told:]:
                say(f"warning: {line}")
        run.start(state.index, say)
        rate = StepRate(state.step)
        if run.saved is None:
            state.save(must=True)

        student.train()
        while state.step < training.steps:
            try:
                if reason := stop():
                    watch.look(wait=True)
                    state.save(must=True)
                    where = place(state.step, -source.warmup, training.steps)
                    raise Interrupted(f"stopped {where} ({reason}); run the same command to resume")
                watch.begin(state.step)

                # The source works: alone before step 0, then when its turn comes.
                updates = source.due(state.step)
                if updates:
                    state.latest |= _update_source(state)

                # The student learns the teacher's answers.
                if state.step == 0 and init == "teacher":
                    with out_of_memory.noticed("the student's start from its teacher"):
                        state.start = start_student(teacher, student, source, task, training.batch_size)
                        divided.take_the_first(student)
                    for line in state.start:
                        say(line)
                if state.step >= 0:
                    with out_of_memory.noticed("the source's images"):
                        batch = source.sample(training.batch_size)
                    if state.step == 0 and training.label_weight and batch.targets is None:
                        say("note: training.label_weight has no effect: the source's images have no targets")
                    with out_of_memory.noticed(STUDENT_STEP):
                        state.latest |= student_step.learn(batch, state.step)
                        state.average.update(student, state.step)
                for name, network in source.artefacts().items():  # sampling may move running averages
                    watch.see(f"the source's {name}", [*(network.parameters() if updates else ()), *network.buffers()])
                watch.look()
                state.step += 1

                # Log, validate and save now and then; none of it touches a random state.
                step, last = state.step, state.step == training.steps
                logs = step % training.log_every == 0 or step == 0 or last
                shows = step % training.picture_every == 0 or step == 0 or last
                validates = step % training.save_every == 0 or last
                if logs or shows or validates:
                    watch.look(wait=True)  # before anything is written
                if logs:
                    log(_logged(state, training.steps, rate))
                with out_of_memory.noticed("validation"), state.average.shown_by(student, shows or validates):
                    if shows:
                        picture = validation.picture(task, teacher, student, source, trained=step > 0)
                        if picture is not None:
                            run.save_picture(state.index, picture)
                    if validates and step > 0:
                        _validate(state, task, teacher, training, say)
                if last or replicas.all_agree("due" if state.due(planned=validates) else None):
                    watch.look(wait=True)
                    state.save(must=last)
            except (NotFinite, OutOfMemory) as fault:
                _roll_back(state, fault, task, training, say)

        if training.select == "agreement":
            student.load_state_dict(state.best.weights)
        else:
            state.average.put_into(student)
    return Chosen(
        step=state.best.step,
        agreement=state.best.agreement,
        history=list(recovery.history),
        start=state.start,
        remarks=[*state.remarks, *state.verdict.note()],
    )


def _paired_layers(
    task: Task, teacher: nn.Module, student: nn.Module, training: Training, say: Callable[[str], None]
) -> Mapping[str, str]:
    """Teacher's layer -> student's, whose attention maps are compared; what was named is checked in any case."""
    if not (training.attention_weight or training.attention_layers):
        return {}
    images = synthetic_batch(task.image_size, next(student.parameters()).device)
    pairs = features.chosen_pairs(teacher, student, images, training.attention_layers)
    if not training.attention_weight:
        say("note: training.attention_layers has no effect, training.attention_weight is 0")
        return {}
    return pairs


def _update_source(state: TrainState) -> dict[str, Tensor]:
    """An update of the source; its metrics. A source that gives up has gone back to its last healthy state: saved."""
    try:
        with out_of_memory.noticed(SOURCE_UPDATE):
            metrics = state.source.update(state.student, state.step)
    except TrainingError:
        with contextlib.suppress(TrainingError, NotFinite):  # the first fault is the one to show
            state.save()
        raise
    for name, value in metrics.items():
        state.watch.see(f"the source's {name}", [value])
    state.watch.look()
    return metrics


def _logged(state: TrainState, steps: int, rate: StepRate) -> Progress:
    """The metrics since the last line, written into the run's log; and where the run is."""
    values = divided.mean_values({name: float(value) for name, value in state.latest.items()})
    state.latest = {}
    state.run.log(state.index, state.step, values)
    return Progress(
        phase="training" if state.step > 0 else "warm-up",
        step=state.step,
        first=-state.source.warmup,
        last=steps,
        rate=rate.at(state.step),
        values=values,
    )


def _validate(
    state: TrainState, task: Task, teacher: nn.Module, training: Training, say: Callable[[str], None]
) -> None:
    """Compare the student with the teacher on validation images: a line of the log, the verdict, the best student."""
    metrics = divided.mean_values(validation.signals(task, teacher, state.student, state.source))
    if metrics:
        state.run.log(state.index, state.step, metrics)
        if line := state.verdict.line(state.step, metrics):
            say(line)
    agreement = metrics.get("agreement")
    if training.select == "last":
        state.best = BestStudent(step=state.step, agreement=agreement)
    elif state.best.agreement is None or (agreement or 0.0) > state.best.agreement:
        weights = modes.copied_state(state.student)
        state.best = BestStudent(step=state.step, agreement=agreement, weights=weights)


def _roll_back(
    state: TrainState, fault: NotFinite | OutOfMemory, task: Task, training: Training, say: Callable[[str], None]
) -> None:
    """Go back to the last checkpoint, with something changed. Raises TrainingError where that was done often enough."""
    run, recovery, good = state.run, state.recovery, state.good_step
    state.optimizer.zero_grad()
    if isinstance(fault, NotFinite):
        evidence = {**fault.evidence, "what": str(fault), "good": good, "student": state.student.state_dict()}
        file = run.save_fault(fault.step + state.source.warmup, evidence)
        line = recovery.with_numbers(fault, training, good, f" (its inputs are saved in {file})" if file else "")
    else:
        student = state.student
        line = recovery.with_memory(
            fault, training, good, state.source, student, state.step, lambda: least_images(task, student)
        )
    say(line)
    state.watch.forget()
    checkpoint = run.last_state()
    assert checkpoint is not None
    state.restore(checkpoint)
    run.start(state.index, say)
    state.save()  # what was changed is not forgotten, whatever happens next


def _dtype_of(network: nn.Module) -> torch.dtype:
    """The precision of forward passes: the one its wrapper runs it in."""
    dtype = getattr(network, "dtype", torch.float32)
    assert isinstance(dtype, torch.dtype)
    return dtype
