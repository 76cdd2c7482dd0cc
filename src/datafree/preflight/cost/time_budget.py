"""The schedule planned for `training.time`: steps, warm-up and update interval that end when the time does.

It is planned once, when a run begins, from costs that are measured on this machine, and written into the run's recipe;
a resumed run takes it from there. The warm-up is kept where it takes at most half of the time, the rhythm where updates
take at most two thirds of what is left then, the rise of the learning rate where it is at most a tenth of the steps.

On a CPU seconds are processor time of the thread that computes, so that other work on the machine changes no plan; they
are wall time elsewhere. Planning, building the networks, the student's start from its teacher, comparisons and pictures
are counted; scores on labelled data, reading files ahead and writing checkpoints are not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from datafree.config import yaml
from datafree.config.duration import duration_of, seconds_of
from datafree.distributed import replicas
from datafree.engine.build_networks import Given, build_networks, require_weights, with_student
from datafree.errors import RecipeError
from datafree.ops import modes
from datafree.preflight.cost.beside import beside
from datafree.preflight.cost.calibration import Calibration, clock_of
from datafree.preflight.cost.estimate import cost_of_teacher, memory_of
from datafree.preflight.cost.forecast import too_large
from datafree.preflight.cost.short_time import ENOUGH, FEW, too_few
from datafree.preflight.cost.start_cost import start_of
from datafree.recipe.recipe import SOURCE, Recipe
from datafree.recipe.training import Training
from datafree.sources.base import ImageSource
from datafree.text import counted, size

WARMUP, UPDATES = 1 / 2, 2 / 3  # of the time, and of what the warm-up leaves of it, at most
RISE = 10  # of so many steps one at most has a learning rate that still rises
ALLOWED, ALLOWED_SHARE = 10.0, 0.05  # seconds, and share of the time, that the measurement may take, about
_PASSES = 80  # passes through the teacher, and work of that length, that it makes
_TIMED = 20  # of what is allowed, each thing is timed for one part
_DOUBT = 1.1  # by which the least time that is named is longer than the one just measured


@dataclass(frozen=True, kw_only=True)
class UpdateCost:
    """A source's updates: how often the recipe wants them, and seconds of one."""

    warmup: int
    update_every: int
    early: float  # before the student's first step
    late: float  # beside its steps


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a run is made of, in seconds."""

    sources: tuple[UpdateCost, ...]  # of those whose updates are their own work, in order
    step: float  # of the student, with its share of comparisons and pictures
    fixed: float  # once: planning, building the networks, a start from the teacher, the record at the end
    calibrated: Calibration | None = None  # of which these are


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is planned: the student's steps, and (warmup, update_every) of each source."""

    steps: int
    rhythm: tuple[tuple[int, int], ...]
    lr_warmup: int | None = None  # as a run's recipe has it; None: as `_in_steps` has it


def planned(costs: Costs, seconds: float) -> Schedule:
    """The longest schedule within `seconds`. Raises RecipeError where not even one step fits."""
    room = seconds - costs.fixed
    first = costs.step + sum(source.late for source in costs.sources if source.update_every)  # step 0 has all updates
    least = first + sum(source.early for source in costs.sources if source.warmup)
    if room < least:
        enough = duration_of(_DOUBT * (costs.fixed + least))
        raise RecipeError(
            [
                f"training.time={duration_of(seconds)} is too short for one step: give {enough} or more (--time; "
                "measured on this machine just now), or set training.steps without a time"
            ]
        )
    warmups = _warmups(costs.sources, min(WARMUP * room, room - first))
    left = room - _early(costs.sources, warmups)
    # Updates take `each` seconds a step on average: at most UPDATES / (1 - UPDATES) as long as the step itself.
    each = sum(source.late / source.update_every for source in costs.sources if source.update_every)
    stretch = max(1.0, each * (1 - UPDATES) / (UPDATES * costs.step)) if costs.step > 0 else 1.0
    every = [_up(source.update_every * stretch) for source in costs.sources]

    def takes(steps: int) -> float:
        updates = sum(-(-steps // n) * source.late for n, source in zip(every, costs.sources, strict=True) if n)
        return steps * costs.step + updates

    return Schedule(steps=_most(takes, left), rhythm=tuple(zip(warmups, every, strict=True)))


def _warmups(sources: tuple[UpdateCost, ...], room: float) -> list[int]:
    """Updates before the student's first step: all, or the same share of each source's within `room`; one at least."""
    whole = [source.warmup for source in sources]
    takes = _early(sources, whole)
    if takes <= room:
        return whole
    cut = [max(1, int(count * room / takes)) if count else 0 for count in whole]
    return cut if _early(sources, cut) <= room else [min(1, count) for count in whole]


def _early(sources: tuple[UpdateCost, ...], warmups: list[int]) -> float:
    return sum(count * source.early for count, source in zip(warmups, sources, strict=True))


def _up(value: float) -> int:
    """The next whole number; rounding errors above one do not count."""
    return -int(-(value - 1e-9) // 1)


def _most(takes: Callable[[int], float], room: float) -> int:
    """The most steps that take no more than `room`; at least one."""
    low, high = 1, 2
    while takes(high) <= room and high < 10**9:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) <= room else (low, middle)
    return low


def with_time(
    recipe: Recipe, training: Training, out: Path | None, given: Given, device: torch.device, dtype: torch.dtype
) -> tuple[Recipe, Training, list[str]]:
    """The recipe with the schedule that its `training.time` stands for, and what is to be said; else as it is.

    The run directory `out`, where there is a run, says which it was. Of several processes the first one plans, as if
    it were alone. Raises DatafreeError.
    """
    if training.time is None:
        return recipe, training, []

    def decide() -> tuple[Schedule, list[str]]:
        if out is not None and (before := recorded(out / "recipe.yaml", recipe.source)) is not None:
            return before, []
        with replicas.single_process():
            return found(recipe, training, given, device, dtype)

    schedule, lines = replicas.broadcast_from_rank0(decide)
    training = _in_steps(training, schedule)
    return replace(recipe, training=training, source=_scheduled(recipe.source, schedule)), training, lines


def _in_steps(training: Training, schedule: Schedule) -> Training:
    """The training in the schedule's steps, with a rise of the learning rate that is over after a tenth of them.

    A run of an earlier version, where it is as long as the recipe states, goes on so.
    """
    rise = training.lr_warmup
    if rise != schedule.lr_warmup:
        rise = min(rise, schedule.steps // RISE)
    return replace(training, steps=schedule.steps, lr_warmup=rise)


def recorded(file: Path, source: ImageSource) -> Schedule | None:
    """The schedule in a run's recipe, for `source`; None where there is none, which whoever opens the run will say."""
    try:
        content = yaml.parse(file.read_text(encoding="utf-8"), str(file))
        steps, rhythm = content["training"]["steps"], tuple(_rhythm(content["source"]))
        rise = content["training"]["lr_warmup"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    updated = {id(each) for each in source.updated_sources()}
    own = [id(each) in updated for each in source.all_sources()]
    counts = [steps, rise, *(count for pair in rhythm for count in pair)]
    if len(rhythm) != len(own) or any(type(count) is not int or count < 0 for count in counts) or not steps:
        return None
    kept = tuple(pair for pair, wanted in zip(rhythm, own, strict=True) if wanted)
    return Schedule(steps=steps, rhythm=kept, lr_warmup=rise)


def _rhythm(section: Any) -> Iterator[tuple[Any, Any]]:
    """(warmup, update_every) of a source's section and of those in it, in the order of `ImageSource.all_sources`."""
    if isinstance(section, Mapping) and SOURCE.label in section:
        yield section["warmup"], section["update_every"]
    for value in section.values() if isinstance(section, Mapping) else section if isinstance(section, list) else ():
        yield from _rhythm(value)


def _scheduled(source: ImageSource, schedule: Schedule) -> ImageSource:
    """A copy with the schedule's warm-ups and rhythm; `source` itself where these are its own."""
    if [(part.warmup, part.update_every) for part in source.updated_sources()] == list(schedule.rhythm):
        return source
    source = copy.deepcopy(source)
    for part, (warmup, every) in zip(source.updated_sources(), schedule.rhythm, strict=True):
        part.warmup, part.update_every = warmup, every
    for each in reversed(list(source.all_sources())):
        if each.forwards_updates:  # it waits for the longest of those that it holds
            each.warmup = max(nested.warmup for nested in each.nested_sources())
    return source


def found(
    recipe: Recipe, training: Training, given: Given, device: torch.device, dtype: torch.dtype
) -> tuple[Schedule, list[str]]:
    """The schedule for this machine as it is now, and a line that says what is planned. Raises DatafreeError."""
    seconds = seconds_of(training.time or "")
    assert training.time is not None and seconds is not None
    costs = measured(recipe, training, given, device, dtype, seconds)
    schedule = planned(costs, seconds)
    memory, warnings = _memory(costs.calibrated, recipe, training, schedule) if costs.calibrated else (0, [])
    lines = [_told(training, recipe.source, schedule, memory), *warnings]
    if schedule.steps < FEW:
        lines.append(f"warning: {too_few(training.time, schedule.steps, time_for(costs, ENOUGH))}")
    return schedule, lines


def _memory(seen: Calibration, recipe: Recipe, training: Training, schedule: Schedule) -> tuple[int, list[str]]:
    """Bytes at the peak of what is planned, whose banks hold what it makes; a warning of more than is free."""
    seen.source, seen.training = _scheduled(recipe.source, schedule), _in_steps(training, schedule)
    return memory_of(seen), too_large(seen, replace(recipe, source=seen.source))


def time_for(costs: Costs, steps: int) -> float:
    """The least seconds, within a hundredth, in which so many steps are planned."""
    low = costs.fixed + costs.step + sum(source.early + source.late for source in costs.sources)
    high = 2 * low  # of `low` itself rounding may leave less than a step
    while planned(costs, high).steps < steps:
        low, high = high, 2 * high
    while high > 1.01 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if planned(costs, middle).steps >= steps else (middle, high)
    return high


def measured(
    recipe: Recipe, training: Training, given: Given, device: torch.device, dtype: torch.dtype, seconds: float
) -> Costs:
    """What updates and steps of a recipe cost on this machine; the measurement itself is part of `fixed`."""
    clock = clock_of(device)
    began, allowed = clock(), max(ALLOWED, ALLOWED_SHARE * seconds)
    recipe, _ = with_student(recipe, given.teacher)
    task = recipe.task
    require_weights(recipe.teacher, task)
    networks = build_networks(recipe, device, dtype, replace(given, student=copy.deepcopy(given.student)))
    built = clock() - began
    known = cost_of_teacher(networks.teacher, task.image_size, device, min(16, training.batch_size))
    with modes.frozen(networks.teacher):
        calibrated = Calibration(
            task=task,
            teacher=networks.teacher,
            student=networks.student,
            source=recipe.source,
            training=training,
            dtype=dtype,
            most=max(2, int(allowed / _PASSES / max(known.backward, 1e-9))),
            budget=allowed / _TIMED,
            clock=clock,
            scored=recipe.data is not None,
            whole=ALLOWED_SHARE * seconds,
        )
        sources = tuple(
            UpdateCost(
                warmup=full.warmup,
                update_every=full.update_every,
                early=calibrated.update(part, full, -1).seconds if full.warmup else 0.0,
                late=calibrated.update(part, full, 0).seconds if full.update_every else 0.0,
            )
            for part, full in zip(calibrated.small.updated_sources(), recipe.source.updated_sources(), strict=True)
        )
        step = calibrated.step().each.seconds
        calibrated.answers()
        around = beside(calibrated)
        look, picture, record = around.look.seconds, around.picture.seconds, around.record.seconds
        start = sum(item.seconds for item in start_of(calibrated, recipe.student))
    step += look / training.save_every + picture / training.picture_every
    fixed = clock() - began + built + start + look + picture + record
    return Costs(sources=sources, step=step, fixed=fixed, calibrated=calibrated)


def _told(training: Training, source: ImageSource, schedule: Schedule, memory: int) -> str:
    """What is planned, in a line."""
    parts = list(zip(source.updated_sources(), schedule.rhythm, strict=True))
    warmups = [
        f"{f'{warmup:,} of ' if warmup < part.warmup else ''}{counted(part.warmup, 'warm-up update')}"
        for part, (warmup, _) in parts
        if part.warmup
    ]
    slower = [
        f"; an update every {counted(every, 'step')}, not {part.update_every:,}"
        for part, (_, every) in parts
        if every != part.update_every
    ]
    if (rise := _in_steps(training, schedule).lr_warmup) < training.lr_warmup:
        slower.append(f"; the learning rate rises over {counted(rise, 'step')}, not {training.lr_warmup:,}")
    planned = " and ".join([*warmups, counted(schedule.steps, "step")])
    return f"training.time={training.time}: {planned} are planned{''.join(slower)}" + (
        f"; {size(memory)} beside Python and torch" if memory else ""
    )
