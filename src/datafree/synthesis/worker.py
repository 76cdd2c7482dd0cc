"""A source at work for a data set: trained by its warm-up where it has one, then asked for a shard at a time.

Every update and every shard draws from random states seeded anew by the recipe's seed and its own number.

B images, H x W pixels.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datafree.engine import out_of_memory
from datafree.engine.nonfinite import Watch
from datafree.engine.out_of_memory import OutOfMemory
from datafree.engine.progress import SAVED_WITHIN, Progress, place
from datafree.engine.recovery import SOURCE_UPDATE, too_large
from datafree.errors import DataError, Interrupted, TrainingError
from datafree.ops import modes
from datafree.recipe.recipe import Recipe
from datafree.recipe.training import Training
from datafree.sources.base import Batch, ImageSource
from datafree.synthesis.claims import PAUSE, longer
from datafree.synthesis.preview import write_preview
from datafree.synthesis.shard_store import ShardStore

SAMPLED = 256  # images of a shard that is sampled, at least
TRAINED = "trained.pt"  # the source after its warm-up, or on the way there


@dataclass(kw_only=True)
class ShardWorker:
    """A source at work for a data set."""

    recipe: Recipe
    training: Training
    teacher: nn.Module
    student: nn.Module  # untrained, for updates that look at one
    finished: list[Batch]  # the source puts into it
    shards: ShardStore
    stop: Callable[[], str | None]
    log: Callable[[Progress], None]
    watch: Watch
    say: Callable[[str], None] = lambda line: None
    answered: bool = False  # whether the teacher's answers became targets
    repeats: bool = False  # whether images came again, as those of a folder do that has too few

    def train(self) -> None:
        """The updates of the source's warm-up, or those that are left of it; by one process, the others wait."""
        trained, pause = False, PAUSE
        while not trained:
            with self.shards.alone_at("training") as trained:
                if trained:
                    self._train()
            if not trained:
                if pause == PAUSE:
                    self.say(f"another process is training the source: waiting for it{self.shards.if_killed}")
                if reason := self.stop():
                    raise Interrupted(f"stopped while another process is training the source ({reason})")
                time.sleep(pause)
                pause = longer(pause)

    def _train(self) -> None:
        source, training = self.recipe.source, self.training
        step = first = -source.warmup
        if (saved := self.shards.load_state(TRAINED)) is not None:
            step = saved["step"]
            source.load_state_dict(saved["source"])
        began, began_at, saved_at = time.perf_counter(), step, time.monotonic()

        def save() -> None:
            state = {"step": step, "source": source.state_dict()}
            self.watch.check_state(state)
            self.shards.save_state(TRAINED, state, keep=True)

        while step < 0:
            if reason := self.stop():
                save()
                raise Interrupted(f"stopped {place(step, first, 0)} ({reason}); run the same command to resume")
            values: dict[str, Tensor] = {}
            if source.due(step):
                modes.seed_everything(_seed(training.seed, "update", step))
                values = self._updated(step)
            if self.finished:
                raise DataError(
                    "a part of the source finishes batches of images while another does not: make a data set of that "
                    "part alone"
                )
            step += 1
            if step == 0 or step % training.save_every == 0 or time.monotonic() - saved_at > SAVED_WITHIN:
                save()
                saved_at = time.monotonic()
            if step == 0 or step % training.log_every == 0:
                rate, figures = (step - began_at) / (time.perf_counter() - began), _as_numbers(values)
                self.log(Progress(phase="warm-up", step=step, first=first, last=0, rate=rate, values=figures))

    def make(self, images: int, *, trained: bool) -> None:
        """Add shards until there are `images` images."""
        source, shards = self.recipe.source, self.shards
        began, had = time.perf_counter(), shards.images
        fresh = _serialised(source.state_dict())
        at, known = 0, _digest(fresh)  # the shard that the source's state is for; that state
        before: set[bytes] = set()  # the images of the shard before; of a source that is not trained, of the first one
        each = shard_images(source, self.training.batch_size)
        pause, seen = PAUSE, -1  # images, when others were last waited for
        while shards.images < images:
            if reason := self.stop():
                raise Interrupted(
                    f"stopped at {shards.images:,} of {images:,} images ({reason}); run the same command to resume"
                )
            if (number := shards.claim(images, each)) is None:  # other processes are at what is missing
                if seen < 0:
                    self.say(f"other processes are making all missing shards: waiting for them{self.shards.if_killed}")
                pause, seen = longer(pause) if shards.images == seen else PAUSE, shards.images
                time.sleep(pause)
                continue

            # A trained source is the same for every shard; others may carry something on from the shard before.
            state: Any = None
            if trained:
                state = shards.load_state(TRAINED)["source"]
            elif number != at:
                state = _deserialised(fresh) if number == 0 else shards.state_before(number)
            if state is not None:
                source.load_state_dict(state)
            modes.seed_everything(_seed(self.training.seed, "shard", number))
            batch = self._batch(number)
            if trained:
                before = _new(batch, before)
            elif not source.finishes:
                here, again = _told_apart(batch, before)
                self.repeats |= again > 0
                before = before or here

            after: dict[str, Any] | None = None
            if not trained:
                after = source.state_dict()
                self.watch.check_state(after)
                follows = number == at or state is not None
                at, earlier, known = number + 1, known, _digest(_serialised(after))
                if known == earlier and not shards.carries:
                    after = None
                elif not follows:  # it should have gone on from a shard that another process is making: after that
                    at, shards.carries = -1, True
                    shards.leave(number)
                    continue
            if number == 0:
                shards.keep(partial(write_preview, task=self.recipe.task, batch=batch))  # so no shard is without
            shards.write(number, self.recipe.task, batch, after)
            done, rate = min(shards.images, images), (shards.images - had) / (time.perf_counter() - began)
            self.log(Progress(phase="images", step=done, first=0, last=images, rate=rate, values=batch.figures))

    def _updated(self, step: int) -> dict[str, Tensor]:
        """An update of the source, looked at. Raises NotFinite, or TrainingError with a batch size that fits."""
        source = self.recipe.source
        self.watch.begin(step)
        try:
            with out_of_memory.noticed(SOURCE_UPDATE):
                values = source.update(self.student, step)
        except OutOfMemory:
            raise too_large(source, self.student, step) from None
        for name, value in values.items():
            self.watch.see(f"the source's {name}", [value])
        for name, network in source.artefacts().items():
            self.watch.see(f"the source's {name}", [*network.parameters(), *network.buffers()])
        self.watch.look(wait=True)
        return values

    def _batch(self, number: int) -> Batch:
        """The images of a shard as they are written, their targets; and what the update logs, if one made them."""
        source, size = self.recipe.source, self.training.batch_size
        values: dict[str, Tensor] = {}
        if source.finishes:
            values = self._updated(-1)  # no student learns: it stays in the warm-up
            parts = list(self.finished)
            self.finished.clear()
        else:
            parts = [source.sample(size) for _ in range(shard_images(source, size) // size)]
        images = torch.cat([part.images for part in parts]).float()
        if not torch.isfinite(images).all():
            raise TrainingError(f"images of shard {number:05} are not finite; lower source.lr or the source's weights")
        images = images.clamp(0, 1).mul(255).round() / 255
        targets = [part.targets for part in parts if part.targets is not None]
        if len(targets) < len(parts):
            self.answered = True
            with torch.no_grad():
                targets = [self.recipe.task.pseudo_targets(self.teacher(part)) for part in torch.split(images, size)]
        return Batch(images=images, targets=torch.cat(targets), figures=_as_numbers(values))


def shard_images(source: ImageSource, batch_size: int) -> int:
    """Images of a shard: those of enough batches of the student's, or of an update, as far as the source says so."""
    if not source.finishes:
        return -(-SAMPLED // batch_size) * batch_size
    size = source.update_size()
    return 1 if size is None else size.images


def _new(batch: Batch, before: set[bytes]) -> set[bytes]:
    """Digests of a batch's images. Raises DataError if some are in the batch twice, or among those `before`."""
    here, again = _told_apart(batch, before)
    if again:
        raise DataError(
            f"the source gives images that it has given before ({again} of {len(batch.images)}): it makes no data set; "
            "choose a source.method that makes new images, such as inversion or cgdd"
        )
    return here


def _told_apart(batch: Batch, before: set[bytes]) -> tuple[set[bytes], int]:
    """Digests of a batch's images, and how many of these are in it twice or among those `before`."""
    images = batch.images.mul(255).round().to(torch.uint8).cpu()
    here = {_digest(image.numpy().tobytes()) for image in images}
    return here, len(images) - len(here - before)


def _seed(seed: int, what: str, number: int) -> int:
    """A seed for every update and every shard of a run, of 63 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {what} {number}".encode(), digest_size=8).digest()) >> 1


def _as_numbers(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _serialised(state: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _deserialised(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
