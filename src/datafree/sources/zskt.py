"""ZSKT: a generator that climbs the divergence of student and teacher, and a student that learns each batch at length.

Paul Micaelli and Amos Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, arXiv
1905.09768; settings of its public CIFAR-10 script. The student there learns by KL at temperature 1 (task.temperature=1)
with Adam at 2e-3, cosine, batches of 128, and by attention transfer with beta 250. The public code's KL is a mean over
classes too, so that beside the sum over classes in `losses.kl_loss` training.attention_weight is 250 * C to match it
(2,500 for CIFAR-10).

Ours: the student's gradients are not clipped; images are kept in [0, 1] by a sigmoid, where the public generator ends
in a BatchNorm. B images, C classes, N rows (an image or a pixel each).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, NonNegative, Positive, PositiveInt
from datafree.networks.generators import ResizeGenerator
from datafree.ops import losses, modes
from datafree.sources.base import Batch, Paper, SourceContext
from datafree.sources.parts.generator_source import GeneratorSource


@final
@dataclass(kw_only=True)
class Zskt(GeneratorSource):
    """The generator looks for images on which the student does not believe its teacher: KL(teacher || student), T = 1.

    One update is one generator step; the latents of that step, through the generator after it, are the images from
    which the student draws until the next update: with batches of equal size every step is on the whole of them, as
    published. A larger batch is filled up with images made anew.
    """

    paper: ClassVar[Paper | None] = Paper("Micaelli & Storkey", "1905.09768")
    passes: ClassVar[Mapping[str, int]] = {"generator": 1, "teacher": 1, "student": 1}

    latent: Annotated[PositiveInt, Doc("Z")] = 100
    width: Annotated[PositiveInt, Doc("channels of the generator at full size")] = 64
    batch_size: Annotated[PositiveInt, Doc("images per update")] = 128
    lr: Annotated[Positive, Doc("Adam's, falling to 0 over the run along a cosine")] = 1e-3
    clip: Annotated[NonNegative, Doc("largest norm of the generator's gradient; 0 = any")] = 5.0
    student_mode: Annotated[
        Literal["train", "eval"], Doc("of the student's BatchNorm while the generator looks through it")
    ] = "train"
    restarts: Annotated[Count, Doc("at most; each halves the rate")] = 3
    update_every: Annotated[Count, Doc("student steps per update, all on its images")] = 10

    def attach(self, context: SourceContext) -> None:
        self.attach_generator(context, ResizeGenerator(context.task.image_size, self.latent, self.width))
        self._images = torch.empty(0, 3, *context.task.image_size, device=context.device)  # the latest update's

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task = self._context.task
        latents = self._trainer.draw(self.batch_size)
        images = self._trainer.make(latents)
        outputs = self._context.teacher(images)
        with modes.looked_through(student, self.student_mode):
            student_probs = task.class_probs(student(images))
        loss = losses.zskt_generator_loss(student_probs, task.class_probs(outputs))
        cosine = (1 + math.cos(math.pi * max(step, 0) / self._context.steps)) / 2
        self._trainer.step(loss, self.lr * cosine * self._trainer.guard.caution, self.clip)
        signals = self._trainer.guard.after(step, task, images, outputs)  # may put the generator back
        self._images = self._trainer.make_for_student(latents)
        return {"divergence": -loss.detach() * student_probs.shape[1], **signals}  # of a row, nats

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        order = torch.randperm(len(self._images), device=self._images.device)[:n]
        images = self._images[order]
        if len(images) < n:
            images = torch.cat([images, self._trainer.make_for_student(self._trainer.draw(n - len(images)))])
        return Batch(images=images)

    def state_dict(self) -> dict[str, Any]:
        return {**self._trainer.state_dict(), "images": self._images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trainer.load_state_dict(state)
        self._images = state["images"].to(self._context.device)
