"""The image source that suits a teacher, chosen when the teacher is known: `source: {method: auto}`.

The choice rests on trials with CIFAR-10 and CamVid (docs/choose.md); benchmarks/budget.py measures what it is worth.

B images, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, ExistingFolder
from datafree.networks.batchnorm import batchnorm_layers, is_as_new
from datafree.networks.normalized import bare
from datafree.sources.base import Batch, ImageSource, SourceContext
from datafree.sources.fast import Fast
from datafree.sources.folder import Folder
from datafree.sources.mixed import Mixed
from datafree.sources.parts.memory_bank import default_capacity
from datafree.sources.procedural.boundary import gives_gradients
from datafree.sources.procedural.source import Procedural
from datafree.tasks.base import Task

BANKED = 20_000  # images that `fast` keeps, where these are small
BATCH, LEAST_BATCH = 64, 8  # images of an update of `fast`, of small images and of the largest
BATCH_PIXELS = BATCH * 128 * 128
ENOUGH = 0.5  # of the layers with a kernel: so many BatchNorm layers make its statistics a prior of images
WIDTH = 16  # channels of the generator at full size: a wider one costs several times what a small teacher does


@final
@dataclass(kw_only=True)
class Auto(ImageSource):
    """`fast` for a teacher with BatchNorm statistics and gradients, `procedural` for others; half photos if given."""

    forwards_updates: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False  # chooses by whether there are some

    photos: Annotated[ExistingFolder | None, Doc("unlabelled photos of a related kind: half of each batch")] = None
    warmup: Annotated[Count, Doc("updates before the student's first step")] = 30
    update_every: Annotated[Count, Doc("student steps from one update to the next; 0 = none after the warm-up")] = 24

    def attach(self, context: SourceContext) -> None:
        self._source, why = self.choose(context.task, context.teacher, context.device)
        context.say(why)
        self._source.attach(context)

    def choose(self, task: Task, teacher: nn.Module, device: torch.device) -> tuple[ImageSource, str]:
        """The source for a teacher that takes images in [0, 1], and a line that says why it is that. Draws nothing."""
        made, why = self._made(task, teacher, device)
        made.size_bank(task.image_size)
        if self.photos is None:
            return made, f"source.method=auto: {why}"
        photos = Folder(path=self.photos, crop="random", flip=True)
        return Mixed(parts=[photos, made]), f"source.method=auto: {why}; half of each batch is photos"

    def _made(self, task: Task, teacher: nn.Module, device: torch.device) -> tuple[ImageSource, str]:
        layers, kernels = batchnorm_layers(teacher).values(), count_kernels(teacher)
        norms = sum(not is_as_new(layer) for layer in layers)
        if norms < ENOUGH * kernels <= len(layers):
            new = len(layers) - norms
            return (
                self._procedural(),
                f"procedural, as the statistics of {new} BatchNorm layers are as new: they say nothing",
            )
        if not kernels:
            return self._procedural(), "procedural, as nobody can look into the teacher: its layers are not told"
        if not norms or norms < ENOUGH * kernels:  # a program's layers are not seen at all
            return self._procedural(), f"procedural, as {norms} BatchNorm layers are too few for {kernels} layers"
        if not gives_gradients(task, teacher, device):
            return self._procedural(), "procedural, as no gradient comes back through the teacher"
        return self.fast(task), f"fast, as {norms} BatchNorm layers know what the teacher's images were like"

    def fast(self, task: Task) -> Fast:
        """`fast` as it was measured (docs/choose.md): surer images where an answer is about a whole one."""
        size = task.image_size
        targets: dict[str, Any] = {} if task.localizes else {"targets": "seen", "target_weight": 2.0}
        return Fast(
            **targets,
            iterations=5,
            generator_lr=3e-3,
            width=WIDTH,
            batch_size=batch_of(size),
            adversarial_weight=0.0,
            reset_at=0.0,
            bank_size=default_capacity(BANKED, size),
            warmup=self.warmup,
            update_every=self.update_every,
        )

    def _procedural(self) -> Procedural:
        return Procedural(warmup=self.warmup, update_every=self.update_every)

    def nested_sources(self) -> tuple[ImageSource, ...]:
        return (self._source,) if hasattr(self, "_source") else ()

    def due(self, step: int) -> bool:
        return self._source.due(step)

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        return self._source.update(student, step)

    def sample(self, n: int) -> Batch:
        return self._source.sample(n)

    def validation_images(self, n: int) -> Tensor:
        return self._source.validation_images(n)

    def state_dict(self) -> dict[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state)

    def artefacts(self) -> dict[str, nn.Module]:
        return self._source.artefacts()

    def notes(self) -> list[str]:
        return self._source.notes()


def is_open(source: ImageSource) -> bool:
    """Whether it, or a source that it holds, is still to be chosen."""
    return any(isinstance(each, Auto) for each in source.all_sources())


def settled(source: ImageSource, choose: Callable[[Auto], ImageSource]) -> ImageSource:
    """`source` with what `choose` takes for each `auto` in it, however deep; one that holds none is itself.

    What plans, times or records a run has to see the sources that are updated.
    """
    if isinstance(source, Auto):
        return choose(source)
    if not is_open(source):
        return source
    held: dict[str, Any] = {}
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if isinstance(value, ImageSource):
            held[field.name] = settled(value, choose)
        elif isinstance(value, list):
            held[field.name] = [settled(each, choose) if isinstance(each, ImageSource) else each for each in value]
    return dataclasses.replace(source, **held)


def batch_of(image_size: tuple[int, int]) -> int:
    """Images of one update of `fast`: as many pixels as 64 images of 128 x 128 have, since memory grows with them."""
    room = BATCH_PIXELS // math.prod(image_size)
    return max(LEAST_BATCH, min(BATCH, 1 << max(1, room).bit_length() - 1))


def count_kernels(network: nn.Module) -> int:
    """Layers with a weight of inputs and outputs: convolutions and linear maps, of whatever class."""
    weights = (getattr(module, "weight", None) for module in bare(network).modules())
    return sum(isinstance(weight, Tensor) and weight.ndim >= 2 for weight in weights)
