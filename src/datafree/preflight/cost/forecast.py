"""The forecast at the start of a run: its time and memory in a line; warnings, each with an option that would fit.

H x W pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from datafree.data.labelled import LabelledData
from datafree.distributed import replicas
from datafree.engine.build_networks import Networks
from datafree.errors import DatafreeError
from datafree.networks.normalized import in_float32
from datafree.ops import modes
from datafree.preflight.cost.banks import banks_of
from datafree.preflight.cost.beside import beside, both_networks
from datafree.preflight.cost.calibration import STUDENT, Calibration
from datafree.preflight.cost.estimate import calibration, cost_of_teacher, memory_of, run_cost, timed
from datafree.preflight.cost.free_memory import free_memory
from datafree.preflight.cost.start_cost import start_of
from datafree.recipe.recipe import SOURCE, Recipe, dump
from datafree.recipe.training import Training
from datafree.sources.base import ImageSource
from datafree.tasks.base import synthetic_batch
from datafree.text import counted, first_line
from datafree.text import size as bytes_shown
from datafree.text import time as time_shown

DAY = 24 * 3600.0  # seconds; a longer run is warned about
MANY = 300  # steps and iterations of updates: fewer are over before they could be foretold
SHORT = 30.0  # seconds that fewer must take at the least to be foretold all the same
PASS = 0.05  # seconds that a timed pass may take
STARTED = {"teacher": ", and the student's start from its teacher"}  # what is said of one that was not timed
SPARED = 0.1  # of what is free, left for what is not counted


def foretold(
    recipe: Recipe,
    training: Training,
    networks: Networks,
    device: torch.device,
    dtype: torch.dtype,
    labelled: LabelledData | None,
    *,
    always: bool = False,
) -> list[str]:
    """What a run will take, as lines; none for one that is over in seconds (unless `always`), or that several processes
    share.

    Nothing is changed by it: the student is a copy, the source another, random states are those of before. It never
    stops a run: what is wrong with a recipe the run says itself. With `always`, where none follows, that is raised.
    """
    if replicas.count() > 1 or not (always or _is_worth_it(recipe, training, networks, device)):
        return []
    before = modes.random_state()
    try:
        return _lines(recipe, training, networks, device, dtype, labelled, always)
    except Exception as error:  # whatever it is, of anyone's code
        if always and isinstance(error, DatafreeError):
            raise
        return [f"note: what the run will take is not known: {first_line(error)}"]
    finally:
        modes.set_random_state(before)


def _lines(
    recipe: Recipe,
    training: Training,
    networks: Networks,
    device: torch.device,
    dtype: torch.dtype,
    labelled: LabelledData | None,
    whole: bool,
) -> list[str]:
    known = cost_of_teacher(networks.teacher, recipe.task.image_size, device, training.batch_size, PASS)
    with calibration(
        task=recipe.task,
        teacher=networks.teacher,
        student=copy.deepcopy(networks.student),
        source=recipe.source,
        training=training,
        known=known,
        dtype=dtype,
        scored=labelled is not None,
        pass_seconds=PASS,
    ) as calibrated:
        return lines_of(calibrated, recipe, labelled, whole=whole)


def lines_of(
    calibrated: Calibration, recipe: Recipe, labelled: LabelledData | None, *, whole: bool = False
) -> list[str]:
    """The forecast of a calibrated run; what its warm-up makes in vain; warnings.

    A student's start from its teacher takes too long to be timed before each run: only where it is to be `whole`.
    """
    training, cost, around = calibrated.training, run_cost(calibrated), beside(calibrated)
    seconds = cost.seconds + around.record.seconds
    beyond = "" if whole else STARTED.get(recipe.student.init, "")
    seconds += sum(item.seconds for item in start_of(calibrated, recipe.student)) if whole else 0.0
    seconds += training.steps / training.save_every * around.look.seconds
    seconds += (training.steps + recipe.source.warmup) / training.picture_every * around.picture.seconds
    if labelled is not None:
        images = synthetic_batch(recipe.task.image_size, calibrated.device)
        with in_float32(calibrated.teacher, calibrated.student):
            seconds += len(labelled) * both_networks(calibrated, images).seconds
    return [
        forecast(seconds, cost.memory, calibrated.device) + beyond,
        *forgotten(recipe),
        *too_long(seconds),
        *too_large(calibrated, recipe),
    ]


def outline(recipe: Recipe, images: int | None, *, resolved: bool = True) -> str:
    """What is known before anything is timed: steps, updates and the images in banks.

    `resolved`: whether a time has become steps.
    """
    training = recipe.training
    if images is None and training.time is not None and not resolved:
        return f"{recipe.name}: as many steps of {training.batch_size} images as fit into {training.time}"
    learns = f"{counted(training.steps, 'step')}, batches of {training.batch_size}"
    parts = [learns if images is None else counted(images, "image")]
    for each in recipe.source.updated_sources():
        updates = each.count_due(range(-each.warmup, 0 if images is not None else training.steps))
        size, name = each.update_size(), type(each).__name__.lower()
        if updates and size is not None:
            parts.append(f"{name}: {counted(updates, 'update')} of {counted(size.images, 'image')}")
    pixels = 3 * math.prod(recipe.task.image_size)
    banked = 0 if images is not None else sum(each.bank_images() for each in recipe.source.all_sources())
    if banked:
        parts.append(f"a bank of {banked:,} images, {bytes_shown(banked * pixels)} when it is full")
    return f"{recipe.name}: {'; '.join(parts)}"


def forecast(seconds: float, memory: int, device: torch.device) -> str:
    """Such as "about 28 min on this CPU, 1.2 GB beside Python and torch"."""
    where = {"cpu": "CPU", "cuda": "GPU"}.get(device.type, device.type)
    return f"about {time_shown(seconds)} on this {where}, {bytes_shown(memory)} beside Python and torch"


def forgotten(recipe: Recipe) -> list[str]:
    """A note for each bank that drops images before the student sees one."""
    lines, pixels = [], math.prod(recipe.task.image_size)
    for each, key in keyed(recipe):
        size, held = each.update_size(), each.bank_images()
        made = each.warmup * size.images if each.finishes and size is not None else 0
        if made > held:
            lines.append(
                f"note: the bank holds {held:,} of the {made:,} images that the warm-up makes; "
                f"{key}.bank_size={made} would take {bytes_shown(3 * pixels * made)}"
            )
    return lines


def too_long(seconds: float) -> list[str]:
    """A warning of a run of more than a day."""
    if seconds <= DAY:
        return []
    return ["warning: that is more than a day; training.time=8h plans a schedule that ends with its time"]


def too_large(calibrated: Calibration, recipe: Recipe) -> list[str]:
    """A warning of a run that needs more memory than is free, with what would fit."""
    needs, free = memory_of(calibrated), free_memory(calibrated.device)
    if free is None or needs <= free:
        return []
    way = _smaller(calibrated, recipe, needs, (1 - SPARED) * free)
    return [f"warning: {bytes_shown(needs)} of memory are needed and {bytes_shown(free)} are free; {way}"]


def _smaller(calibrated: Calibration, recipe: Recipe, needs: int, room: float) -> str:
    """The option that makes a run that `needs` too many bytes fit into `room`."""
    training, pixels = calibrated.training, 3 * math.prod(recipe.task.image_size)
    banks = banks_of(calibrated.source, training, recipe.task.image_size, calibrated.device)
    sources = [(each, key) for each, key in keyed(recipe) if each.bank_images()]
    if banks and sources and needs - banks < room:
        # Of several banks the largest gives way.
        largest, key = max(sources, key=lambda pair: pair[0].bank_images())
        fits = int((room - (needs - banks)) / pixels) - sum(s.bank_images() for s, _ in sources if s is not largest)
        if fits > 0:
            return f"{key}.bank_size={_rounded(fits)} would fit"
    who, peak = max(calibrated.peaks.items(), key=lambda pair: pair[1], default=("", 0))
    if peak and needs - peak - banks < room:
        share = (room - (needs - peak - banks)) / peak
        if who == STUDENT:
            return f"training.batch_size={max(2, _power(training.batch_size * share))} might fit, auto finds what does"
        for each, key in keyed(recipe):
            size = each.update_size()
            if type(each).__name__ == who and size is not None:
                return f"{key}.batch_size={max(2, _power(size.images * share))} might fit"
    return "choose smaller networks, or task.image_size smaller"


def keyed(recipe: Recipe) -> Iterator[tuple[ImageSource, str]]:
    """The sources of a recipe, each with its key, such as source.parts.1."""
    keys = list(_keys(dump(recipe)["source"], "source"))
    sources = list(recipe.source.all_sources())
    return zip(sources, keys, strict=False)


def _keys(section: Any, key: str) -> Iterator[str]:
    """The keys of a source's section and of those in it, in the order of `ImageSource.all_sources`."""
    if isinstance(section, Mapping) and SOURCE.label in section:
        yield key
    items = section.items() if isinstance(section, Mapping) else enumerate(section) if isinstance(section, list) else ()
    for name, value in items:
        yield from _keys(value, f"{key}.{name}")


def _is_worth_it(recipe: Recipe, training: Training, networks: Networks, device: torch.device) -> bool:
    """Whether a run is long enough: by what it does, or by one pass of the teacher."""
    source = recipe.source
    steps, often, images = range(-source.warmup, training.steps), training.steps, 4 * training.steps
    images *= training.batch_size  # the teacher's answer, and the student's pass forward and back, about
    for each in source.updated_sources():
        size, due = each.update_size(), each.count_due(steps)
        often += due * (iterations := max(1, sum(size.iterations) if size is not None else 1))
        images += 3 * due * iterations * (size.images if size is not None else 1)
    if often >= MANY:
        return True
    look = synthetic_batch(recipe.task.image_size, device)
    with torch.no_grad(), modes.frozen(networks.teacher):
        seconds = timed(lambda: networks.teacher(look), device, times=1)
    return seconds / len(look) * images >= SHORT


def _power(value: float) -> int:
    """The power of two below a number."""
    return int(2 ** math.floor(math.log2(max(1.0, value))))


def _rounded(value: int) -> int:
    """Down to two figures."""
    unit = int(10 ** max(0, len(str(value)) - 2))
    return value // unit * unit
