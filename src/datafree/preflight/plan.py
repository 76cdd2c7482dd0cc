"""What a run or a data set will cost in time, memory, disk and device-hours: the answers of `datafree plan`.

A short calibration on this machine is extrapolated (`calibration`); what several devices divide and what they exchange
is counted in it (`pass_cost`), and put together (`many_devices`) for devices that are all like this one.

B images of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datafree.data.labelled import LabelledData
from datafree.engine.build_networks import NOTHING_GIVEN, build_networks, require_weights, sourced, with_student
from datafree.engine.progress import Progress, Work
from datafree.networks.normalized import size_of
from datafree.ops import modes
from datafree.preflight.cost.batch_size import with_batch_size
from datafree.preflight.cost.calibration import Calibration, CostItem, clock_of
from datafree.preflight.cost.estimate import SLOW, RunCost, calibration, cost_of_teacher, run_cost, seconds_of_passes
from datafree.preflight.cost.forecast import STARTED, forecast, forgotten, outline, too_large
from datafree.preflight.cost.many_devices import WAIT, On, divided, on_devices, rounds, together
from datafree.preflight.cost.pass_cost import Cost
from datafree.preflight.cost.start_cost import start_of
from datafree.preflight.cost.time_budget import with_time
from datafree.preflight.overheads import of_run, of_shard
from datafree.recipe.recipe import Recipe
from datafree.sources.base import Batch
from datafree.storage.environment import hardware
from datafree.synthesis.synthesize import require_number, trains_first
from datafree.tasks.labelled import open_labelled
from datafree.text import time as shown

PARTS = 4  # of the work that a plan is
DEVICES = (1, 8, 64)
LINK = 10e9  # bytes a second of each device, to and from the others
_FEW = 8  # images of a device's part of a batch, below which it is hardly made use of


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of work by one device alone."""

    what: str
    often: int
    each: float  # seconds
    divided: float  # share of it that several devices divide


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is to be said; `dataclasses.asdict` of it is what `--json` prints. Seconds and bytes."""

    recipe: str
    what: str  # "run", "data set"
    device: str
    hardware: dict[str, Any]
    calibrated: float  # seconds that the calibration took
    batch_size: int
    images: int | None  # of a data set
    shards: int | None
    files: int | None
    work: list[Row]
    memory: int  # on one device, beside Python and torch
    disk: dict[str, int]
    on: list[On]
    assumed: list[str]
    notes: list[str]


def plan(
    recipe: Recipe,
    images: int | None = None,
    link: float = LINK,
    devices: Sequence[int] = DEVICES,
    *,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Plan a run of `recipe` or, where `images` are wanted, the data set that `datafree synthesize` would make.

    `link`: bytes a second of each device to and from the others. Writes nothing but a few files into a folder of the
    system's temporary ones, which it removes. `say` is told the first figures, `log` how far it is. Raises
    DatafreeError as the run would before its first step.
    """
    began, work = time.perf_counter(), Work("plan", PARTS, log)
    if images is not None:
        require_number(recipe)
    say(outline(recipe, images, resolved=False))
    work.next("building the networks")
    device = modes.choose_device(recipe.training.device)
    dtype = modes.choose_precision(recipe.training.precision, device)
    recipe, notes = with_student(recipe)
    task = recipe.task
    labelled = open_labelled(task, recipe.data) if recipe.data else None
    require_weights(recipe.teacher, task)
    clock = clock_of(device)
    opened = clock()
    chosen = sourced(recipe, device, dtype)
    looked = clock() - opened
    recipe = chosen.recipe
    recipe, training, found = with_batch_size(recipe, None, NOTHING_GIVEN, device, dtype)
    if images is None:
        recipe, training, timed = with_time(recipe, training, None, NOTHING_GIVEN, device, dtype)
        found += timed
        if training.time is not None:
            say(outline(recipe, None))
    opened, learns = clock(), images is None
    networks = build_networks(recipe, device, dtype, teacher=chosen.teacher, learns=learns, starts=not learns)
    # A run whose source is chosen builds its teacher for that, and once more; here it is the same.
    looked *= 2 if chosen.teacher else 1
    opening = CostItem(what="opening", often=1, each=Cost(seconds=clock() - opened + looked))
    work.next("timing the teacher")
    known = cost_of_teacher(networks.teacher, task.image_size, device, training.batch_size)
    if learns and known.backward > SLOW:
        say(f"at least {shown(seconds_of_passes(recipe.source, training, known))}, for the teacher's passes alone")
    finished: list[Batch] = []
    with calibration(
        task=task,
        teacher=networks.teacher,
        student=networks.student,
        source=recipe.source,
        training=training,
        known=known,
        dtype=dtype,
        scored=labelled is not None,
        on_finished_batch=None if images is None else finished.append,
    ) as calibrated:
        work.next("timing the source and the student")
        if images is None:
            cost, beyond = run_cost(calibrated), STARTED.get(recipe.student.init, "")
            say(f"first figures: {forecast(cost.seconds, cost.memory, device)}{beyond}; the rest is being timed")
            work.next("timing comparisons, pictures, files" + (", the student's start" if beyond else ""))
            start = start_of(calibrated, recipe.student)
            parts = _run(calibrated, cost, labelled, [*start, opening], link, devices)
            told = [line.removeprefix("note: ") for line in (*forgotten(recipe), *too_large(calibrated, recipe))]
            parts = replace(parts, notes=[*parts.notes, *told])
        else:
            parts = _set(calibrated, recipe, finished, images, opening, devices)
    work.at(PARTS)
    return Plan(
        recipe=recipe.name,
        what="run" if images is None else "data set",
        device=f"{device.type}, {str(dtype).removeprefix('torch.')}",
        hardware=hardware(),
        calibrated=time.perf_counter() - began,
        batch_size=training.batch_size,
        images=images,
        shards=parts.shards,
        files=parts.files,
        work=[_row(work, images is not None) for work in parts.work],
        memory=parts.memory,
        disk=parts.disk,
        on=parts.on,
        assumed=[
            "all devices are as this one was just now"
            + (", with nothing else running on it: processor time" if device.type == "cpu" else ""),
            f"time and memory grow with the images, {calibrated.timed} of which were timed at once",
            "time grows with the iterations of an update",
            *parts.assumed,
        ],
        notes=[*notes, *chosen.lines, *found, *parts.notes],
    )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a run and a data set have of their own in a plan."""

    work: list[CostItem]
    memory: int
    disk: dict[str, int]
    on: list[On]
    assumed: list[str]
    notes: list[str]
    shards: int | None = None
    files: int | None = None


def _run(
    calibrated: Calibration,
    cost: RunCost,
    labelled: LabelledData | None,
    once: list[CostItem],
    link: float,
    devices: Sequence[int],
) -> _Parts:
    around = of_run(calibrated, labelled, cost.seconds)
    shared = calibrated.training.data_parallel == "divided"
    own = [replace(item, each=item.each.shared_out()) if shared else item for item in cost.work]
    work, step = [*own, *around.work, *once], own[-1].each
    batch = calibrated.training.batch_size
    few = [count for count in devices if count > 1 and batch / count < _FEW]
    doubt = (
        f"a batch of {batch} gives each of {few[0]} devices less than {_FEW} images: it would be hardly made use of"
        if few
        else ""
    )
    return _Parts(
        work=work,
        memory=cost.memory,
        disk=around.disk,
        on=[on_devices(count, together(work, count, link), divided(step, count, link)) for count in devices],
        assumed=[
            "each device makes and learns its own part of every batch"
            if shared
            else "passes through networks are divided among devices, all else is done by each of them alike",
            f"a link moves {link / 1e9:.3g} GB a second; each exchange takes {1e6 * WAIT:.0f} microseconds more",
            "a page of the run takes a second to write, and half a megabyte",
        ],
        notes=[doubt] if doubt else [],
    )


def _set(
    calibrated: Calibration,
    recipe: Recipe,
    finished: list[Batch],
    images: int,
    opening: CostItem,
    devices: Sequence[int],
) -> _Parts:
    source = recipe.source
    trained = calibrated.updates(range(-source.warmup, 0)) if trains_first(source) else []
    shard = of_shard(calibrated, recipe, finished)
    shards = CostItem(what="shards", often=-(-images // shard.images), each=shard.each)
    alone = sum(work.seconds for work in (*trained, opening))
    disk = {"images, what they show, records": round(images / shard.images * shard.bytes)}
    if shard.entries:
        disk["annotations of all"] = shards.often * shard.entries
    if trained or shard.carries:
        disk["the source's states, two while one is written"] = 2 * shard.state
    return _Parts(
        work=[*trained, shards, opening],
        memory=size_of(calibrated.teacher) + size_of(calibrated.student) + calibrated.peak,
        disk=disk,
        on=[
            on_devices(
                count,
                alone + rounds(shards.often, count, shard.carries) * shard.each.seconds,
                (shard.each.seconds, 0.0),
            )
            for count in devices
        ],
        assumed=[
            "images take on the disk what those of the calibration do; of few iterations, they are nearer to noise",
            "shards need no exchange; a source that is trained first is trained by one device while others wait",
        ],
        notes=["each shard goes on from the one before: one is made after the other"] if shard.carries else [],
        shards=shards.often,
        files=shards.often * shard.files,
    )


def _row(work: CostItem, is_set: bool) -> Row:
    each = work.each
    share = each.passes / each.seconds if each.seconds else 0.0
    if is_set:
        share = float(work.what == "shards")
    return Row(what=work.what, often=work.often, each=each.seconds, divided=share)
