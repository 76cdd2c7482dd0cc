"""What a network is, what it can teach and what that would cost: the answers of `datafree inspect`.

Whatever is said of the images a network wants says how that is known; a suggestion is shown and never used.

B images, C classes, H x W pixels, L locations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from datafree.engine.build_networks import NOTHING_GIVEN, build_networks, with_source, with_student
from datafree.engine.progress import Progress, Work
from datafree.errors import DatafreeError, NetworkError
from datafree.networks.foreign.file_teacher import count_bytes, count_parameters, is_opaque
from datafree.networks.normalized import Normalized
from datafree.ops import modes
from datafree.ops.predictions import raw_tensors
from datafree.preflight.cost.batch_size import with_batch_size
from datafree.preflight.cost.estimate import RunCost, TeacherCost, calibration, cost_of_teacher, run_cost
from datafree.preflight.cost.time_budget import with_time
from datafree.preflight.examination import examine
from datafree.preflight.option_values import StatedImages
from datafree.preflight.recommendation import Recommendation, recommended
from datafree.preflight.subject import Fact, find_subject
from datafree.preflight.suitability import Applies, BatchNorm, applies
from datafree.recipe.recipe import Recipe
from datafree.recipe.training import Training
from datafree.sources import SOURCES
from datafree.tasks import TASKS
from datafree.tasks.base import Task, synthetic_batch
from datafree.text import did_you_mean, show

PARTS = 4  # of the work
_BATCH_SIZE = 16  # images timed at once without a recipe, at most


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """All that was found out; `dataclasses.asdict` of it is what `--json` prints."""

    network: str
    args: dict[str, Any]
    weights: str | None  # the file
    trained: bool  # whether it comes with weights, as far as anyone knows
    task: Fact
    problem: str | None  # why its answers do not fit the task
    classes: Fact
    output: str  # the form of its answers
    parameters: int
    bytes: int  # of parameters and buffers
    macs: int | None  # multiplications with an addition, for one image of `input_size`
    input_size: Fact  # [height, width]: an image of this size has passed
    mean: Fact
    std: Fact
    channel_order: Fact
    batchnorm: BatchNorm
    recommended: list[Recommendation]  # methods to take, best first
    sources: dict[str, Applies]
    device: str
    cost: TeacherCost
    recipe: str | None
    run: RunCost | None
    notes: list[str]


def inspect_teacher(
    teacher: str,
    *,
    weights: Path | None = None,
    args: Sequence[str] = (),
    size: str | None = None,
    task: str | None = None,
    classes: int | None = None,
    recipe: str | None = None,
    channels: int | None = None,
    mean: str | None = None,
    std: str | None = None,
    channel_order: str | None = None,
    device: str | None = None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> Inspection:
    """Look at a network by name, or at the teacher of a recipe.

    `args` are "key=value" of its constructor, `size` is "224x224" (height x width), `task` a kind of TASKS; `recipe`
    is what a run's cost is estimated for. `channels` is 1 or 3; `mean` and `std` are "0.5,0.5,0.5" (R, G, B of images
    in [0, 1]) or one number; `channel_order` is "rgb" or "bgr"; `device` is one of torch's.
    Raises DatafreeError for what does not fit.
    """
    if task is not None and task not in TASKS:
        raise NetworkError(f"there is no task {show(task)}{did_you_mean(task, TASKS)}; known: {', '.join(TASKS)}")
    work = Work("inspect", PARTS, log)
    work.next("reading the network")
    images = StatedImages.parse(channels, mean, std, channel_order)
    subject = find_subject(
        teacher, weights=weights, args=args, size=size, classes=classes, recipe=recipe, images=images
    )
    plan = subject.plan
    where = modes.choose_device(device or ("auto" if plan is None else plan.training.device))
    dtype = modes.choose_precision("auto" if plan is None else plan.training.precision, where)
    work.next("looking at its answers")
    seen = examine(subject, task, where, torch.float32)  # what answers are is not for bfloat16 to blur
    spec, network, made, notes = seen.subject.spec, seen.network, seen.task, seen.notes
    network.dtype = dtype

    # What it can teach, and what that costs.
    gradients = _gives_gradients(network, seen.input_size.value, where)
    at_once = plan.training.batch_size if plan is not None and isinstance(plan.training, Training) else _BATCH_SIZE
    work.next("timing it")
    cost = cost_of_teacher(network, seen.input_size.value, where, at_once)
    work.next("timing the recipe's run" if plan is not None else "telling which methods suit it")
    run = None
    try:
        if plan is not None:
            run = _cost_of_run(plan, made, network, cost, where, dtype)
    except DatafreeError as error:
        notes.append(f"no estimate of the run: {error}")
    suit = (made, seen.batchnorm, seen.trained, seen.problem, gradients)
    sources = {name: applies(name, *suit) for name in sorted(SOURCES)}
    methods = recommended(made, network, where, cost, sources) if seen.trained else []
    work.at(PARTS)
    return Inspection(
        network=spec.called,
        args=dict(spec.args),
        weights=None if spec.weights is None else str(spec.weights),
        trained=seen.trained,
        task=seen.kind,
        problem=seen.problem,
        classes=seen.classes,
        output=seen.output,
        parameters=count_parameters(network),
        bytes=count_bytes(network),
        macs=None if is_opaque(network) else seen.macs,
        input_size=seen.input_size,
        mean=seen.mean,
        std=seen.std,
        channel_order=seen.channel_order,
        batchnorm=seen.batchnorm,
        recommended=methods,
        sources=sources,
        device=f"{where.type}, {str(dtype).removeprefix('torch.')}",
        cost=cost,
        recipe=None if plan is None else plan.name,
        run=run,
        notes=notes,
    )


def _gives_gradients(network: Normalized, size: tuple[int, int], device: torch.device) -> bool:
    """Whether what it answers has a gradient with respect to its images."""
    with torch.enable_grad(), modes.frozen(network):
        outputs = network(synthetic_batch(size, device)[:1].requires_grad_())
    return any(part.requires_grad for part in raw_tensors(outputs))


def _cost_of_run(
    plan: Recipe, task: Task, teacher: Normalized, cost: TeacherCost, device: torch.device, dtype: torch.dtype
) -> RunCost:
    plan, _ = with_student(replace(plan, task=task))
    plan, _ = with_source(plan, device, dtype)
    plan, training, _ = with_batch_size(plan, None, NOTHING_GIVEN, device, dtype)
    plan, training, _ = with_time(plan, training, None, NOTHING_GIVEN, device, dtype)
    networks = build_networks(plan, device, dtype, teacher=teacher)
    with calibration(
        task=task,
        teacher=teacher,
        student=networks.student,
        source=plan.source,
        training=training,
        known=cost,
        dtype=dtype,
        scored=plan.data is not None,
    ) as calibrated:
        return run_cost(calibrated)
