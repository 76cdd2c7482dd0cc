"""A data set made to disk from a recipe's source and teacher, with no student that learns.

A source whose updates finish batches (`ImageSource.finishes`) makes a shard with each update. Any other is first
trained by the updates of its warm-up, if it has one; then a shard is what some calls of `sample` give. Every update and
every shard draws from random states seeded anew by the recipe's seed and its own number. So a set that was made in
pieces equals one made at once, to the last bit on the same hardware.

B images, H x W pixels.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree import modes
from datafree.distill import Progress
from datafree.errors import DataError, Interrupted, NetworkError, RecipeError, RunError, TrainingError
from datafree.job import prepare, save_artefacts
from datafree.manifest import damages, hashes, read_record
from datafree.networks.load import has_weights
from datafree.recipe import Recipe, dump
from datafree.runs import FREE_KEYS
from datafree.shards import Shards
from datafree.sources.base import Batch, ImageSource

SAMPLED = 256  # images of a shard that is sampled, at least
_TRAINED = "trained.pt"  # the source after its warm-up, or on the way there
_USED = tuple(f"training.{name}" for name in ("steps", "batch_size", "seed", "device", "precision"))


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a data set has come to."""

    path: Path  # of the set itself, in its task's layout
    images: int
    shards: int
    notes: list[str]


def synthesize(
    recipe: Recipe,
    out: Path,
    images: int,
    *,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """Make a data set of at least `images` images, in whole shards, in `out`/data; or go on with it, or add to it.

    Images have 8 bits a channel; their targets are those they were made to show or, where the source has none, the
    teacher's answers (`Task.pseudo_targets`). `stop` is asked before each shard and each update of a warm-up: a reason
    to stop raises Interrupted. Raises DatafreeError. Shards that are whole stay good whatever happens.
    """
    task, training, source = recipe.task, recipe.training, recipe.source
    trains = _trains(source)
    shards = Shards(out, dump(recipe), _is_free(source))
    names = shards.class_names or _class_names(recipe)
    notes: list[str] = []
    if shards.count:
        say(f"going on with {out}, which holds {shards.images:,} images")
    if shards.images < images:
        device = modes.choose_device(training.device)
        dtype = modes.choose_precision(training.precision, device)
        if not has_weights(recipe.teacher):
            raise NetworkError(
                f"the teacher {recipe.teacher.network} has no weights, so it knows nothing to make images of; "
                "give teacher.weights=FILE (.safetensors, or a tensors-only .pt)"
            )
        teacher = prepare(recipe.teacher, task, "teacher", device, dtype)
        modes.seed_everything(training.seed)  # here, so that the first weights of all others depend on the seed alone
        student = prepare(recipe.student, task, "student", device, dtype).train()
        finished: list[Batch] = []
        with modes.frozen(teacher):
            source.attach(training.setting(task, teacher, device, dtype, say, keep=finished.append))
            shards.begin(names)
            work = _Work(
                recipe=recipe, teacher=teacher, student=student, finished=finished, shards=shards, stop=stop, log=log
            )
            if trains:
                work.train()
                save_artefacts(source, out)  # before anything is sampled, which moves a generator's running statistics
            work.make(images, trained=trains)
        if not trains:
            save_artefacts(source, out)
        notes += source.notes()
        if work.answered:
            notes.append("the source's images have no targets: they were written with the teacher's answers")
    shards.begin(names)
    shards.finish()
    return Made(path=shards.data, images=shards.images, shards=shards.count, notes=notes)


def verify(recipe: Recipe, out: Path, *, say: Callable[[str], None] = lambda line: None) -> Made:
    """Compare every file of a made data set with what was written; says a line for each that is not the same.

    Changes nothing. Raises RunError for a directory that holds no set of this recipe, DataError for damaged files.
    """
    shards = Shards(out, dump(recipe), _is_free(recipe.source))
    if not shards.count:
        raise RunError(f"{out} holds no made data set; give the --out of one")
    bad = 0
    for name, what in damages(out):
        say(f"{out / name}: {what}")
        bad += 1
    if bad:
        raise DataError(
            f"{bad:,} of {sum(1 for _ in hashes(out)):,} files of {out} are damaged or missing; to have a shard made "
            "again remove its shards/NNNNN.json, a file of no shard itself, and run the command without --verify"
        )
    index = out / "index.json"
    finished = index.exists() and read_record(index)["images"] == shards.images
    notes = [] if finished else ["the set is not finished; the command without --verify goes on"]
    return Made(path=shards.data, images=shards.images, shards=shards.count, notes=notes)


def _trains(source: ImageSource) -> bool:
    """Whether updates train the source before it makes anything. Raises RecipeError for one that cannot be."""
    if not source.finishes and not source.warmup and source.due(0):
        raise RecipeError(["source.warmup: is 0, and no student learns here: nothing would train the source; set it"])
    return source.warmup > 0 and not source.finishes


def _is_free(source: ImageSource) -> Callable[[str], bool]:
    """Whether a key of a recipe changes nothing in the data set."""

    def is_free(key: str) -> bool:
        section = key.partition(".")[0]
        unused = section == "training" and key not in _USED
        return key in FREE_KEYS or unused or (section == "student" and source.finishes)

    return is_free


def _class_names(recipe: Recipe) -> list[str]:
    """The names in the recipe's labelled data, else numbers that sort as the ids do."""
    if recipe.data is not None:
        return recipe.task.open_labelled(recipe.data).class_names
    count = recipe.task.num_classes
    return [f"class {label:0{len(str(count - 1))}}" for label in range(count)]


@dataclass(kw_only=True)
class _Work:
    """A source at work for a data set."""

    recipe: Recipe
    teacher: nn.Module
    student: nn.Module  # untrained, for updates that look at one
    finished: list[Batch]  # the source puts into it
    shards: Shards
    stop: Callable[[], str | None]
    log: Callable[[Progress], None]
    answered: bool = False  # whether the teacher's answers became targets

    def train(self) -> None:
        """The updates of the source's warm-up, or those that are left of it."""
        source, training = self.recipe.source, self.recipe.training
        step = first = -source.warmup
        if (saved := self.shards.load_state(_TRAINED)) is not None:
            step = saved["step"]
            source.load_state_dict(saved["source"])
        began, began_at = time.perf_counter(), step

        def save() -> None:
            self.shards.save_state(_TRAINED, _serialised({"step": step, "source": source.state_dict()}))

        while step < 0:
            if reason := self.stop():
                save()
                raise Interrupted(
                    f"stopped at step {step} of the warm-up ({reason}); the same command goes on from here"
                )
            values: dict[str, Tensor] = {}
            if source.due(step):
                modes.seed_everything(_seed(training.seed, "update", step))
                values = source.update(self.student, step)
            if self.finished:
                raise DataError(
                    "a part of the source finishes batches of images while another does not: make a data set of that "
                    "part alone"
                )
            step += 1
            if step == 0 or step % training.save_every == 0:
                save()
            if step == 0 or step % training.log_every == 0:
                rate, figures = (step - began_at) / (time.perf_counter() - began), _floats(values)
                self.log(Progress(phase="warm-up", step=step, first=first, last=0, rate=rate, values=figures))

    def make(self, images: int, *, trained: bool) -> None:
        """Add shards until there are `images` images."""
        source, shards = self.recipe.source, self.shards
        began, had = time.perf_counter(), shards.images
        at, known = 0, _digest(_serialised(source.state_dict()))  # the shard that the source's state is for; that state
        before: set[bytes] = set()  # the images of the shard before
        while shards.images < images:
            if reason := self.stop():
                raise Interrupted(
                    f"stopped at {shards.images:,} of {images:,} images ({reason}); the same command goes on from here"
                )
            number = shards.next

            # A trained source is the same for every shard; others may carry something on from the shard before.
            state: Any = None
            if trained:
                state = shards.load_state(_TRAINED)["source"]
            elif number != at:
                state = shards.state_before(number)
            if state is not None:
                source.load_state_dict(state)
            modes.seed_everything(_seed(self.recipe.training.seed, "shard", number))
            batch, values = self._batch(number)
            if trained:
                before = _new(batch, before)

            content: bytes | None = None
            if not trained:
                content = _serialised(source.state_dict())
                at, earlier, known = number + 1, known, _digest(content)
                if known == earlier and not shards.carries:
                    content = None
            shards.write(number, self.recipe.task, batch, content)
            done, rate = min(shards.images, images), (shards.images - had) / (time.perf_counter() - began)
            self.log(Progress(phase="images", step=done, first=0, last=images, rate=rate, values=_floats(values)))

    def _batch(self, number: int) -> tuple[Batch, dict[str, Tensor]]:
        """The images of a shard as they are written, their targets; and what the update logs."""
        source, size = self.recipe.source, self.recipe.training.batch_size
        values: dict[str, Tensor] = {}
        if source.finishes:
            values = source.update(self.student, -1)  # no student learns: it stays in the warm-up
            parts = list(self.finished)
            self.finished.clear()
        else:
            parts = [source.sample(size) for _ in range(-(-SAMPLED // size))]
        images = torch.cat([part.images for part in parts]).float()
        if not torch.isfinite(images).all():
            raise TrainingError(f"images of shard {number:05} are not finite; lower source.lr or the source's weights")
        images = images.clamp(0, 1).mul(255).round() / 255
        targets = [part.targets for part in parts if part.targets is not None]
        if len(targets) < len(parts):
            self.answered = True
            with torch.no_grad():
                targets = [self.recipe.task.pseudo_targets(self.teacher(part)) for part in torch.split(images, size)]
        return Batch(images=images, targets=torch.cat(targets)), values


def _new(batch: Batch, before: set[bytes]) -> set[bytes]:
    """Digests of a batch's images. Raises DataError if some are in the batch twice, or among those `before`."""
    images = batch.images.mul(255).round().to(torch.uint8).cpu()
    here = {_digest(image.numpy().tobytes()) for image in images}
    again = len(images) - len(here - before)
    if again:
        raise DataError(
            f"the source gives images that it has given before ({again} of {len(images)}): it makes no data set; "
            "choose a source.method that makes new images, such as inversion or cgdd"
        )
    return here


def _seed(seed: int, what: str, number: int) -> int:
    """A seed for every update and every shard of a run, of 63 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {what} {number}".encode(), digest_size=8).digest()) >> 1


def _floats(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _serialised(state: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
