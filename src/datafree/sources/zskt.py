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
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, NonNegative, Positive, PositiveInt
from datafree.networks.generators import ResizeGenerator
from datafree.ops import losses, modes
from datafree.sources.base import Batch, ImageSource, SourceContext
from datafree.sources.parts.generator_trainer import GeneratorTrainer


@final
@dataclass(kw_only=True)
class Zskt(ImageSource):
    """The generator looks for images on which the student does not believe its teacher: KL(teacher || student), T = 1.

    One update is one generator step; the latents of that step, through the generator after it, are the images from
    which the student draws until the next update: with batches of equal size every step is on the whole of them, as
    published. A larger batch is filled up with images made anew.
    """

    latent: Annotated[PositiveInt, Doc("Z")] = 100
    width: Annotated[PositiveInt, Doc("channels of the generator at full size")] = 64
    batch_size: Annotated[PositiveInt, Doc("images per update")] = 128
    lr: Annotated[Positive, Doc("Adam's, falling to 0 over the run along a cosine")] = 1e-3
    clip: Annotated[NonNegative, Doc("largest norm of the generator's gradient; 0 = any")] = 5.0
    student_mode: Annotated[
        Literal["train", "eval"], Doc("of the student's BatchNorm while the generator looks through it")
    ] = "train"
    on_collapse: Literal["restart", "stop", "ignore"] = "restart"
    restarts: Annotated[Count, Doc("at most; each halves the rate")] = 3
    update_every: Annotated[Count, Doc("student steps per update, all on its images")] = 10

    def attach(self, setting: SourceContext) -> None:
        self._setting = setting
        self._maker = GeneratorTrainer(
            setting=setting,
            generator=ResizeGenerator(setting.task.image_size, self.latent, self.width),
            on_collapse=self.on_collapse,
            restarts=self.restarts,
        )
        self._images = torch.empty(0, 3, *setting.task.image_size, device=setting.device)  # the latest update's

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task = self._setting.task
        latents = self._maker.draw(self.batch_size)
        images = self._maker.make(latents)
        outputs = self._setting.teacher(images)
        with modes.looked_through(student, self.student_mode):
            student_probs = task.class_probs(student(images))
        loss = losses.zskt_generator_loss(student_probs, task.class_probs(outputs))
        cosine = (1 + math.cos(math.pi * max(step, 0) / self._setting.steps)) / 2
        self._maker.step(loss, self.lr * cosine * self._maker.guard.caution, self.clip)
        signals = self._maker.guard.after(step, task, images, outputs)  # may put the generator back
        with torch.no_grad():
            self._images = self._maker.make(latents)
        return {"divergence": -loss.detach() * student_probs.shape[1], **signals}  # of a row, nats

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        order = torch.randperm(len(self._images), device=self._images.device)[:n]
        images = self._images[order]
        if len(images) < n:
            images = torch.cat([images, self._maker.make(self._maker.draw(n - len(images)))])
        return Batch(images=images)

    def validation_images(self, n: int) -> Tensor:
        return self._maker.validation_images(n)

    def state_dict(self) -> dict[str, Any]:
        return {**self._maker.state_dict(), "images": self._images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._maker.load_state_dict(state)
        self._images = state["images"].to(self._setting.device)

    def artefacts(self) -> dict[str, nn.Module]:
        return {"generator": self._maker.generator}

    def notes(self) -> list[str]:
        return list(self._maker.guard.history)
