"""The rehearsal of a run or a data set (`--dry-run`): all that comes before its first step, and nothing written."""

from __future__ import annotations

from pathlib import Path

from datafree.config.paths import is_url
from datafree.engine.artifacts import class_names
from datafree.engine.build_networks import NOTHING_GIVEN, build_networks, require_weights, with_source, with_student
from datafree.ops import modes
from datafree.preflight.cost.batch_size import with_batch_size
from datafree.preflight.cost.forecast import foretold, outline
from datafree.preflight.cost.time_budget import with_time
from datafree.preflight.plan import plan
from datafree.recipe.recipe import Recipe
from datafree.recipe.training import Training
from datafree.sources.base import require_outside
from datafree.storage.places import is_run
from datafree.storage.trackers import require
from datafree.tasks.labelled import open_labelled
from datafree.text import counted, size, time


def rehearse(recipe: Recipe, out: Path | str, images: int | None = None) -> list[str]:
    """Lines of what a run of `recipe` into `out` would do or, with `images`, a data set of so many.

    Raises DatafreeError as the run would before its first step.
    """
    if not is_url(str(out)) and not is_run(Path(out)):
        require_outside(recipe.source, Path(out))
    if images is not None:
        made = plan(recipe, images)
        seconds, disk = made.on[0].seconds, sum(made.disk.values())
        shards = counted(made.shards or 0, "shard")
        return [
            f"{shards} of {recipe.name} would be made in {out}: about {time(seconds)}, {size(disk)}",
            *_checked(),
        ]
    recipe, lines = with_student(recipe)
    device = modes.choose_device(recipe.training.device)
    dtype = modes.choose_precision(recipe.training.precision, device)
    recipe, sourced = with_source(recipe, device, dtype)
    recipe, training, sized = with_batch_size(recipe, None, NOTHING_GIVEN, device, dtype)
    recipe, training, timed = with_time(recipe, training, None, NOTHING_GIVEN, device, dtype)
    require(training.track)
    known = class_names(recipe.teacher, recipe.task) or []
    labelled = open_labelled(recipe.task, recipe.data, known) if recipe.data else None
    require_weights(recipe.teacher, recipe.task)
    networks = build_networks(recipe, device, dtype, say=lines.append)
    assert isinstance(training, Training)
    told = [] if training.time else foretold(recipe, training, networks, device, dtype, labelled, always=True)
    return [
        *(*lines, *sourced, *sized, *timed, *told),
        outline(recipe, None),
        f"{recipe.teacher.called} would be distilled into {recipe.student.called}, in {out}",
        *_checked(),
    ]


def _checked() -> list[str]:
    return ["the recipe and both networks are sound; nothing was written (--dry-run)"]
