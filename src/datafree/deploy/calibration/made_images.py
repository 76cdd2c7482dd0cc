"""Calibration images out of an image source, within a time: no two alike, 8 bits a channel.

A source that finishes batches is asked for as many as are needed; one that trains a generator on the way trains it by
its warm-up first, and the last batches count. Any other source is trained by its warm-up and then sampled.

N images, H x W pixels.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datafree.config.duration import duration_of
from datafree.deploy.written_names import LEAST
from datafree.engine import out_of_memory
from datafree.engine.out_of_memory import OutOfMemory
from datafree.engine.progress import Progress
from datafree.engine.recovery import SOURCE_UPDATE, too_large
from datafree.errors import DataError, Interrupted, RecipeError, TrainingError
from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.generators import can_be_resized_to
from datafree.networks.normalized import bare
from datafree.ops import modes
from datafree.recipe.recipe import SOURCE
from datafree.sources.auto import Auto, batch_of, settled
from datafree.sources.base import Batch, ImageSource, SourceContext, UpdateSize, attach
from datafree.sources.fast import Fast
from datafree.sources.inversion import Inversion
from datafree.sources.procedural.boundary import gives_gradients

SAMPLED = 32  # images asked for at once
TRIED = 4  # times as many images are sampled as are wanted, where some come twice
ITERATIONS = 500  # of images made from noise, as in ZeroQ (Cai et al., arXiv 2001.00281), where there is time for them
WARMUP = 16  # updates of `auto`: with half a minute of a ResNet-20's images INT8 agreed as with real ones (docs)
TRIAL = UpdateSize(images=8, iterations=(2,))  # of the update that is timed


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a source has made."""

    images: Tensor  # (N, 3, H, W) uint8, on the CPU
    source: str  # the method
    updates: int  # of the source
    seconds: float  # it took, of `clock_of` the device
    notes: list[str]


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds as `--time` counts them: of the processor on a CPU, so that a busy machine changes nothing."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def make_images(
    source: ImageSource,
    context: SourceContext,
    count: int,
    seconds: float,
    *,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> Made:
    """Up to `count` images by `source` in about `seconds`; fewer where the time is over, and a note says so.

    `source: auto` is chosen here. Random states are the caller's to seed. Raises DatafreeError: for a source that needs
    a student, DataError where fewer than LEAST images were made, Interrupted where `stop` gives a reason.
    """
    source = settled(source, lambda auto: chosen(auto, context))
    if not source.finishes and not source.warmup and source.due(0):
        raise RecipeError(["this source learns with a student, and there is none here: give --source auto"])
    finished: list[Batch] = []
    context = replace(context, on_finished_batch=finished.append if source.finishes else None)
    work = _Work(source, context, clock_of(context.device), seconds, stop, log)
    attach(source, context)
    notes = work.fit(count)
    finished.clear()
    images = work.finished(finished, count) if source.finishes else work.sampled(count)
    if len(images) < min(LEAST, count):
        raise DataError(
            f"{len(images)} images were made in {duration_of(seconds)}, and fewer than {LEAST} calibrate nothing: give "
            "--time more"
        )
    if len(images) < count:
        notes.append(
            f"{len(images):,} images of {count:,} were made in {duration_of(work.passed())} (--time "
            f"{duration_of(work.passed() * count / len(images) * 1.1)} would do for all)"
        )
    return Made(
        images=images,
        source=SOURCE.name_of(type(source)),
        updates=work.updates,
        seconds=work.passed(),
        notes=[*notes, *source.notes()],
    )


def chosen(auto: Auto, context: SourceContext) -> ImageSource:
    """What `auto` chooses; but `fast` for any BatchNorm at all, `inversion` for sizes its generator cannot make."""
    source, why = auto.choose(context.task, context.teacher, context.device)
    height, width = context.task.image_size
    norms = len(batchnorm_layers(bare(context.teacher)))
    reached = norms > 0 and gives_gradients(context.task, context.teacher, context.device)
    if reached and not isinstance(source, Fast):  # too few to make images that teach; ranges need less
        source = auto.fast(context.task)
        why = f"source.method=auto: fast, as {norms} BatchNorm layers know how large activations were"
    if isinstance(source, Fast) and not can_be_resized_to((height, width)):
        source = Inversion(batch_size=batch_of((height, width)), iterations=ITERATIONS, warmup=1)
        source.size_bank((height, width))
        why = f"source.method=auto: inversion, as no generator makes images of {height} x {width} pixels"
    context.say(why)
    return source


class _Work:
    """A source at work against a clock."""

    def __init__(
        self,
        source: ImageSource,
        context: SourceContext,
        clock: Callable[[], float],
        seconds: float,
        stop: Callable[[], str | None],
        log: Callable[[Progress], None],
    ) -> None:
        self._source, self._context, self._clock, self._stop, self._log = source, context, clock, stop, log
        self._began, self._until = clock(), clock() + seconds
        self.updates = 0

    def passed(self) -> float:
        return self._clock() - self._began

    def _now(self) -> float:
        """The time, when all that was asked of the device is done."""
        modes.wait_for(self._context.device)
        return self._clock()

    def _update(self) -> None:
        if reason := self._stop():
            raise Interrupted(f"stopped while images were made ({reason}); nothing was written")
        try:
            with out_of_memory.noticed(SOURCE_UPDATE):
                self._source.update(self._context.teacher, -1)  # no student learns: it stays in the warm-up
        except OutOfMemory:
            raise too_large(self._source, self._context.teacher, -1) from None
        self.updates += 1

    def fit(self, count: int) -> list[str]:
        """Batches no larger than is needed; and where each is made from noise, as many iterations as there is time for.

        A source that trains a generator keeps its iterations: it has fewer updates instead.
        """
        size = self._source.update_size()
        if size is None:
            return []
        size = replace(size, images=min(size.images, count))
        notes = []
        if self._source.finishes and size.iterations and not self._source.artefacts():
            trial = replace(
                TRIAL,
                images=min(TRIAL.images, size.images),
                iterations=tuple(min(TRIAL.iterations[0], stage) for stage in size.iterations),
            )
            self._source.resize_updates(trial)
            self._update()  # the first also sets things up
            before = self._now()
            self._update()
            each = max(self._now() - before, 1e-9) / (trial.images * sum(trial.iterations))
            affordable = 0.9 * (self._until - self._clock()) / (each * count)
            wanted = sum(size.iterations)
            if affordable < wanted:
                fewer = tuple(max(1, int(stage * affordable / wanted)) for stage in size.iterations)
                notes.append(f"{sum(fewer):,} iterations an image instead of {wanted:,}, for the sake of --time")
                size = replace(size, iterations=fewer)
        self._source.resize_updates(size)
        return notes

    def finished(self, batches: list[Batch], count: int) -> Tensor:
        """The images (N, 3, H, W) uint8 of the last batches; as many updates as needed, or as there is time for."""
        size = self._source.update_size()
        needed = -(-count // (size.images if size else SAMPLED))
        trained = self._source.warmup if self._source.artefacts() else 0
        kept: deque[Tensor] = deque(maxlen=needed)
        for index in range(trained + needed):
            self._update()
            for batch in batches:
                kept.append(_bytes(batch.images))
            batches.clear()
            self._say(index + 1, trained + needed)
            if self._clock() >= self._until:
                break
        return _different(iter([*kept]), count)

    def sampled(self, count: int) -> Tensor:
        """Images (N, 3, H, W) uint8 that are sampled after the warm-up, or what of it there is time for."""
        for step in range(-self._source.warmup, 0):
            if self._clock() >= self._until:
                break
            if self._source.due(step):
                self._update()
            self._say(step + self._source.warmup + 1, self._source.warmup)
        rounds = range(0, TRIED * count, SAMPLED)
        return _different((_bytes(self._source.sample(SAMPLED).images) for _ in rounds), count)

    def _say(self, done: int, last: int) -> None:
        rate = done / max(self.passed(), 1e-9)
        self._log(Progress(phase="calibrate", step=done, first=0, last=last, rate=rate, values={}, what="images"))


def _bytes(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> uint8. Raises TrainingError for numbers that are not finite."""
    if not torch.isfinite(images).all():
        raise TrainingError("the source's images are not finite; give another --source, or --seed")
    return images.detach().float().clamp(0, 1).mul(255).round().byte().cpu()


def _different(batches: Iterator[Tensor], count: int) -> Tensor:
    """Up to `count` images, each once."""
    seen: set[bytes] = set()
    found: list[Tensor] = []
    for batch in batches:
        for image in batch:
            if (content := image.numpy().tobytes()) not in seen:
                seen.add(content)
                found.append(image)
        if len(found) >= count:
            break
    return torch.stack(found[:count]) if found else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
