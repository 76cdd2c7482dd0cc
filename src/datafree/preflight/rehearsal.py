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
from datafree.recipe.recipe import Recipe, dump
from datafree.sources.auto import is_open
from datafree.sources.base import require_outside
from datafree.storage.places import is_run, require_for_run
from datafree.storage.run_directory import require_same
from datafree.storage.trackers import require
from datafree.synthesis.synthesize import require_number
from datafree.synthesis.synthesize import require_same as require_same_set
from datafree.tasks.labelled import open_labelled
from datafree.text import counted, size, time


def rehearse(recipe: Recipe, out: Path | str, images: int | None = None) -> list[str]:
    """Lines of what a run of `recipe` into `out` would do or, with `images`, a data set of so many.

    Raises DatafreeError as the run would before its first step.
    """
    if not is_url(str(out)) and not is_run(Path(out)):
        require_outside(recipe.source, Path(out))
    if images is not None:
        return _of_set(recipe, out, images)
    assert isinstance(out, Path)
    require_for_run(out)
    recipe, lines = with_student(recipe)
    device = modes.choose_device(recipe.training.device)
    dtype = modes.choose_precision(recipe.training.precision, device)
    recipe, sourced = with_source(recipe, device, dtype)
    recipe, training, sized = with_batch_size(recipe, out, NOTHING_GIVEN, device, dtype)
    recipe, training, timed = with_time(recipe, training, out, NOTHING_GIVEN, device, dtype)
    if begun := (out / "recipe.yaml").is_file():
        require_same(out, dump(recipe))
    require(training.track)
    known = class_names(recipe.teacher, recipe.task) or []
    labelled = open_labelled(recipe.task, recipe.data, known) if recipe.data else None
    require_weights(recipe.teacher, recipe.task)
    networks = build_networks(recipe, device, dtype, say=lines.append)
    told = []
    if not begun and training.time is None:
        told = foretold(recipe, training, networks, device, dtype, labelled, always=True)
    would = f"{recipe.teacher.called} would be distilled into {recipe.student.called}, in {out}"
    if begun:
        would += ", which holds this run: "
        would += "it has finished" if (out / "result.json").is_file() else "it would go on from its last checkpoint"
    return [*lines, *sourced, *sized, *timed, *told, outline(recipe, None), would, *_checked()]


def _of_set(recipe: Recipe, out: Path | str, images: int) -> list[str]:
    training = require_number(recipe)
    if is_open(recipe.source):
        device = modes.choose_device(training.device)
        recipe, _ = with_source(recipe, device, modes.choose_precision(training.precision, device))
    if isinstance(out, Path):
        require_same_set(recipe, out)
    made = plan(recipe, images)
    seconds, disk = made.on[0].seconds, sum(made.disk.values())
    shards = counted(made.shards or 0, "shard")
    return [
        f"{shards} of {recipe.name} would be made in {out}: about {time(seconds)}, {size(disk)}",
        *_checked(),
    ]


def _checked() -> list[str]:
    return ["the recipe and both networks are sound; nothing was written (--dry-run)"]
