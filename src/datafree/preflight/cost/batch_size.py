"""The batch size search behind `training.batch_size: auto`: the largest power of two that fits.

It is found once, when a run begins, and written into the run's recipe; who goes on with the run takes it from there.
The batches of a source's own updates (`source.batch_size`) are another matter, and stay as the recipe has them.

On a CPU nothing says in time that memory runs out. There the bytes that a step's graph keeps are counted for 2 and for
4 images, which gives those of any number, and half of what is free is left for all that is not counted: what kernels
take for themselves, the teacher's pass, gradients on their way. On a GPU steps are taken for real, each with twice as
many images as the one before, until one does not fit.

B images, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from datafree.config import yaml
from datafree.distributed import replicas
from datafree.engine import out_of_memory
from datafree.engine.build_networks import Given, build_networks, require_weights, with_student
from datafree.engine.out_of_memory import OutOfMemory
from datafree.errors import RecipeError
from datafree.networks.normalized import size_of
from datafree.ops import modes
from datafree.preflight.cost.banks import banks_of
from datafree.preflight.cost.calibration import Calibration
from datafree.preflight.cost.free_memory import free_memory
from datafree.recipe.recipe import Recipe
from datafree.recipe.training import Training
from datafree.text import size as size_shown

LEAST, MOST = 2, 256  # images: BatchNorm needs two; beyond, the same number of steps costs more and teaches little more
ON_CPU, ON_GPU = 0.5, 0.9  # of what is free, at most


def with_batch_size(
    recipe: Recipe, out: Path | None, given: Given, device: torch.device, dtype: torch.dtype
) -> tuple[Recipe, Training, list[str]]:
    """The recipe with the batch size that "auto" stands for, its training, and what is to be said of it; else as it is.

    The run directory `out`, where there is a run, says which it was. Of several processes the first one decides, as if
    it were alone: each of them then has a part of a batch that fits on one. Raises DatafreeError.
    """
    if isinstance(recipe.training, Training):
        return recipe, recipe.training, []

    def decide() -> tuple[int, list[str]]:
        if out is not None and (before := recorded(out / "recipe.yaml")) is not None:
            return before, []
        with replicas.single_process():
            return found(recipe, given, device, dtype)

    size, lines = replicas.broadcast_from_rank0(decide)
    training = recipe.training.with_batch_size(size)
    return replace(recipe, training=training), training, lines


def recorded(file: Path) -> int | None:
    """The batch size in a run's recipe; None where there is none, which whoever opens the run will say."""
    try:
        training = yaml.parse(file.read_text(encoding="utf-8"), str(file))["training"]
        size = training["batch_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return size if type(size) is int and size >= 1 else None


def found(recipe: Recipe, given: Given, device: torch.device, dtype: torch.dtype) -> tuple[int, list[str]]:
    """The batch size for this machine as it is now, and a line that says why. Raises DatafreeError."""
    recipe, _ = with_student(recipe, given.teacher)
    task, training = recipe.task, recipe.training
    require_weights(recipe.teacher, task)
    given = replace(given, student=copy.deepcopy(given.student))
    networks = build_networks(recipe, device, dtype, given)
    free = free_memory(device)
    if free is None:
        raise RecipeError(
            [f"training.batch_size is auto, but nothing says how much memory is free on {device.type}; give a number"]
        )

    def calibrated(images: int) -> Calibration:
        return Calibration(
            task=task,
            teacher=networks.teacher,
            student=networks.student,
            source=recipe.source,
            training=training.with_batch_size(images),
            dtype=dtype,
            most=images,
            budget=0.0,
        )

    with modes.frozen(networks.teacher):
        if device.type == "cuda":
            return _tried(lambda images: _taken(calibrated(images), device), ON_GPU * free)
        kept = {images: calibrated(images).kept() for images in (2, 4)}
    each = (kept[4] - kept[2]) / 2
    # Beside the step: the weights' gradients, what the optimiser keeps, and a full bank.
    learnt = (3 if training.optimizer == "adam" else 2) * size_of(networks.student)
    fixed = (
        kept[2] - 2 * each + learnt + banks_of(recipe.source, training.with_batch_size(LEAST), task.image_size, device)
    )
    return counted(fixed, each, ON_CPU * free)


def counted(fixed: float, each: float, room: float) -> tuple[int, list[str]]:
    """The largest batch, LEAST to MOST, for which `fixed` bytes and `each` an image are within `room`; and why."""
    sizes = [2**power for power in range(1, MOST.bit_length()) if fixed + 2**power * each <= room]
    if not sizes:
        raise RecipeError(
            [
                f"training.batch_size is auto, but {LEAST} images need about {size_shown(fixed + LEAST * each)}, and "
                f"only {size_shown(room)} may be taken of what is free; free some memory, or give a number"
            ]
        )
    size = sizes[-1]
    more = f"; {2 * size} need {size_shown(fixed + 2 * size * each)}" if size < MOST else f" ({MOST} at most)"
    return size, [
        f"training.batch_size: auto is {size}: a step needs about {size_shown(fixed + size * each)} of the "
        f"{size_shown(room)} that it may take{more}"
    ]


def _tried(taken: Callable[[int], int], room: float) -> tuple[int, list[str]]:
    """The largest batch for which what a step has really `taken`, in bytes, is within `room`."""
    size, used = 0, 0
    while size < MOST:
        images = max(LEAST, 2 * size)
        try:
            with out_of_memory.noticed("a step that is tried"):
                needs = taken(images)
        except OutOfMemory:
            break
        if needs > room:
            break
        size, used = images, needs
    if not size:
        raise RecipeError(
            [f"training.batch_size is auto, but a step with {LEAST} images does not fit; free memory of the device"]
        )
    end = "a larger one does not fit" if size < MOST else f"{MOST} is the most"
    return size, [
        f"training.batch_size: auto is {size}: a step took {size_shown(used)} of the {size_shown(room)} that it may "
        f"take, {end}"
    ]


def _taken(calibrated: Calibration, device: torch.device) -> int:
    """Bytes of a GPU that two steps take at the peak, beside what was held before; a full bank is added."""
    torch.cuda.synchronize(device)
    out_of_memory.release()  # what smaller tries have left would be counted
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for _ in range(2):
        calibrated.kept()
    torch.cuda.synchronize(device)
    return (
        torch.cuda.max_memory_reserved(device)
        - before
        + banks_of(calibrated.source, calibrated.training, calibrated.task.image_size, device)
    )
