"""A data set made to disk from a recipe's source and teacher, with no student that learns.

A source whose updates finish batches (`ImageSource.finishes`) makes a shard with each update. Any other is first
trained by the updates of its warm-up, if it has one; then a shard is what some calls of `sample` give. Every update and
every shard draws from random states seeded anew by the recipe's seed and its own number. So a set that was made in
pieces equals one made at once, to the last bit on the same hardware.

B images, H x W pixels.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datafree.config.diff import check_same
from datafree.data.labelled import names_text
from datafree.engine import artifacts
from datafree.engine.artifacts import save_artefacts
from datafree.engine.build_networks import build_networks, with_source
from datafree.engine.nonfinite import NotFinite, Watch
from datafree.engine.origin import compare, origin_of
from datafree.engine.progress import Progress
from datafree.engine.recovery import way_out
from datafree.errors import DataError, Interrupted, NetworkError, RecipeError, RunError, TrainingError
from datafree.networks.load import has_weights
from datafree.ops import modes
from datafree.recipe.recipe import Recipe, dump
from datafree.recipe.training import Training
from datafree.sources.auto import is_open
from datafree.sources.base import Batch, ImageSource, attach, require_outside
from datafree.storage.made_set import INDEX, NAMES, hashes, read_record, records
from datafree.storage.places import is_run
from datafree.storage.run_directory import FREE_KEYS
from datafree.synthesis.claims import PAUSE, longer
from datafree.synthesis.object_store.shards import BucketShards
from datafree.synthesis.preview import means
from datafree.synthesis.shard_store import ShardStore
from datafree.synthesis.shards import Shards
from datafree.synthesis.worker import ShardWorker
from datafree.tasks.base import Task
from datafree.tasks.labelled import numbered, open_labelled, real_names
from datafree.text import counted

_USED = tuple(f"training.{name}" for name in ("steps", "batch_size", "seed", "device", "precision", "speed"))
_ANEW = "to have a shard made again remove its shards/NNNNN.json, a file of no shard itself"
_FROM_BEFORE = (
    "a shard goes on from the one before and cannot be made again alone: put its files back, or make the set anew in "
    "another --out; to have a file of no shard made again remove it"
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a data set has come to."""

    path: Path | str  # of the set itself, in its task's layout; a URL where it is one
    images: int
    shards: int
    notes: list[str]


def synthesize(
    recipe: Recipe,
    out: Path | str,
    images: int,
    *,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """Make a data set of at least `images` images, in whole shards, in `out`/data; or resume it, or add to it.

    `out` is a directory or, as a text, the URL of a folder in an object store (see `bucket`).
    Images have 8 bits a channel; their targets are those they were made to show or, where the source has none, the
    teacher's answers (`Task.pseudo_targets`). `stop` is asked before each shard and each update of a warm-up: a reason
    to stop raises Interrupted. Raises DatafreeError. Shards that are whole stay good whatever happens.
    """
    training = require_number(recipe)
    if is_open(recipe.source):
        device = modes.choose_device(training.device)
        recipe, lines = with_source(recipe, device, modes.choose_precision(training.precision, device))
        say(lines[0])  # which source it is; the others are about the student
    trains = trains_first(recipe.source)
    if isinstance(out, Path) and not is_run(out):
        require_outside(recipe.source, out)
    with contextlib.closing(_opened(recipe, out)) as shards:
        return _fill(shards, recipe, training, images, trains=trains, stop=stop, log=log, say=say)


def require_same(recipe: Recipe, out: Path) -> None:
    """Raise RunError where `out` holds a data set of another recipe; `auto` has been chosen already."""
    if (out / "recipe.yaml").is_file():
        check_same(out / "recipe.yaml", dump(recipe), _is_free(recipe.source), "the data set")


def _opened(recipe: Recipe, out: Path | str) -> ShardStore:
    given = dump(recipe), _is_free(recipe.source)
    return Shards(out, *given) if isinstance(out, Path) else BucketShards(out, *given)


def _fill(
    shards: ShardStore,
    recipe: Recipe,
    training: Training,
    images: int,
    *,
    trains: bool,
    stop: Callable[[], str | None],
    log: Callable[[Progress], None],
    say: Callable[[str], None],
) -> Made:
    task, source = recipe.task, recipe.source
    names = class_names(recipe) if shards.class_names is None else shards.class_names
    if shards.class_names is not None and len(names) != task.num_classes:
        raise RunError(
            f"{shards.data}/{NAMES} has {counted(len(names), 'name')} where the task has {task.num_classes} classes; "
            "put it back as it was, or choose another --out"
        )
    notes: list[str] = []
    trained = partial(save_artefacts, source)  # its networks, as files
    if shards.count:
        say(f"resuming {shards.place}, which holds {counted(shards.images, 'image')}")
    if shards.images < images:
        device = modes.choose_device(training.device)
        dtype = modes.choose_precision(training.precision, device)
        if not has_weights(recipe.teacher):
            raise NetworkError(
                f"the teacher {recipe.teacher.network} has no weights, so it knows nothing to make images of; "
                "give teacher.weights=FILE (.safetensors, or a tensors-only .pt)"
            )
        networks = build_networks(recipe, device, dtype, learns=False)
        teacher = networks.teacher
        shards.origin = origin_of(teacher)
        if line := compare(shards.begun_with(), shards.origin, "the data set"):
            say(f"warning: {line}")
            notes.append(line)
        finished: list[Batch] = []
        known = artifacts.class_names(recipe.teacher, task) or real_names(names)
        watch = Watch(device)
        with modes.frozen(teacher), watch.answers_of(teacher):
            context = training.source_context(
                task, teacher, device, dtype, say, on_finished_batch=finished.append, class_names=known
            )
            attach(source, context)
            shards.begin(names)
            work = ShardWorker(
                recipe=recipe,
                training=training,
                teacher=teacher,
                student=networks.student.train(),
                finished=finished,
                shards=shards,
                stop=stop,
                log=log,
                watch=watch,
                say=say,
            )
            try:
                if trains:
                    work.train()
                    shards.keep(trained)  # before sampling, which moves a generator's running statistics
                work.make(images, trained=trains)
            except NotFinite as fault:
                raise TrainingError(
                    f"{fault}; what was saved before is intact: {way_out(fault, 'source.lr')} (with another --out)"
                ) from fault
        if not trains:
            shards.keep(trained)
        notes += source.notes()
        if work.repeats:
            notes.append("the source gave images again that it had given before: the set holds these more than once")
        if work.answered:
            notes.append("the source's images have no targets: they were written with the teacher's answers")
    shards.begin(names)
    _finish(shards, task, stop)
    if figures := means(records(shards.path)):  # of a bucket, its mirror's
        notes.append(figures)
    return Made(path=shards.data, images=shards.images, shards=shards.count, notes=notes)


def _finish(shards: ShardStore, task: Task, stop: Callable[[], str | None]) -> None:
    """Write the index, or see that another process has written it about all there is."""
    pause = PAUSE
    while not shards.finish(task):
        if reason := stop():
            raise Interrupted(f"stopped while another process is writing the index ({reason})")
        time.sleep(pause)
        pause = longer(pause)


def verify(recipe: Recipe, out: Path | str, *, say: Callable[[str], None] = lambda line: None) -> Made:
    """Compare every file of a made data set with what was written; says a line for each that is not the same.

    Changes nothing. Raises RunError for a place that holds no set of this recipe, DataError for damaged files.
    """
    with contextlib.closing(_opened(recipe, out)) as shards:
        if not shards.count:
            raise RunError(f"{shards.place} holds no made data set; give the --out of one")
        bad = added = 0
        for name, what in shards.damages():
            say(f"{shards.place}/{name}: {what}")
            bad, added = bad + 1, added + what.startswith("added")
        if bad:
            more = f", {added:,} of them added, which are to be removed" if added else ""
            raise DataError(
                f"{bad:,} of {sum(1 for _ in hashes(shards.path)):,} files of {shards.place} are damaged or "
                f"missing{more}; {_FROM_BEFORE if shards.carries else _ANEW}, and run the command without --verify"
            )
        index = shards.path / INDEX
        finished = index.exists() and read_record(index)["images"] == shards.images
        notes = [] if finished else ["the data set is incomplete; run the command without --verify to resume"]
        return Made(path=shards.data, images=shards.images, shards=shards.count, notes=notes)


def require_number(recipe: Recipe) -> Training:
    """The recipe's training. Raises RecipeError where its batch size is to be found: that takes a student to train."""
    if not isinstance(recipe.training, Training):
        raise RecipeError(["training.batch_size: auto is for a student that learns, and none does here; give a number"])
    return recipe.training


def trains_first(source: ImageSource) -> bool:
    """Whether updates train the source before it makes anything. Raises RecipeError for one that cannot be."""
    if source.forwards_updates and any(part.finishes for part in source.updated_sources()):
        raise RecipeError(
            ["source: a part of it finishes batches of images, which are not mixed: make a data set of that part alone"]
        )
    if not source.finishes and not source.warmup and source.due(0):
        raise RecipeError(["source.warmup: is 0, and no student learns here: nothing would train the source; set it"])
    return source.warmup > 0 and not source.finishes


def _is_free(source: ImageSource) -> Callable[[str], bool]:
    """Whether a key of a recipe changes nothing in the data set."""

    def is_free(key: str) -> bool:
        section = key.partition(".")[0]
        unused = section == "training" and not any(f"{key}.".startswith(f"{used}.") for used in _USED)
        return key in FREE_KEYS or unused or (section == "student" and source.finishes)

    return is_free


def class_names(recipe: Recipe) -> list[str]:
    """The names in the recipe's labelled data, else numbers that sort as the ids do. Raises DataError.

    Those of a model directory may be any text, which does not name folders.
    """
    if recipe.data is not None:
        known = artifacts.class_names(recipe.teacher, recipe.task) or []
        names = open_labelled(recipe.task, recipe.data, known).class_names
        names_text(names)  # they are written
        recipe.task.require_names(names)
        return names
    return numbered(recipe.task.num_classes)
