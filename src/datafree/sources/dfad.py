"""DFAD: a generator that looks for images on which student and teacher disagree. No proxy images at all.

Gongfan Fang et al., "Data-Free Adversarial Distillation", arXiv 1912.11006 (2019); settings of its public scripts. The
defaults are those for CamVid. For CIFAR: network resize, objective l1, batch_size 256, decay_at [0.2, 0.4].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, Positive, PositiveInt, Share
from datafree.networks.generators import Generator, ResizeGenerator
from datafree.ops import losses, modes
from datafree.sources.base import Batch, ImageSource, SourceContext
from datafree.sources.parts.generator_trainer import GeneratorTrainer


@final
@dataclass(kw_only=True)
class Dfad(ImageSource):
    """The generator climbs the disagreement |s - t| of student and teacher, which the student then learns away.

    One update is one generator step; the published rhythm is five student steps to each. Use it with task.distill=l1,
    the student's published loss. There is nothing fixed to hold out: `held_out` shows what the generator makes now.
    """

    network: Annotated[
        Literal["resize", "dcgan"], Doc("resize: resize-convolutions, CIFAR's script; dcgan: near CamVid's")
    ] = "dcgan"
    objective: Annotated[
        Literal["l1", "log"], Doc("to be large; l1: mean |s - t|, CIFAR's; log: log(that + 1), CamVid's")
    ] = "log"
    latent: Annotated[PositiveInt, Doc("Z")] = 256
    width: Annotated[PositiveInt, Doc("channels of the generator's widest-resolution layer")] = 64
    batch_size: Annotated[PositiveInt, Doc("images per generator step; CIFAR's script: 256")] = 64
    lr: Annotated[Positive, Doc("Adam's")] = 1e-3
    decay_at: Annotated[
        tuple[Share, ...], Doc("fractions of the run at which lr falls to a tenth; CIFAR: 0.2, 0.4")
    ] = (1 / 3, 2 / 3)
    student_mode: Annotated[
        Literal["train", "eval"], Doc("of the student's BatchNorm while the generator looks through it")
    ] = "train"
    on_collapse: Literal["restart", "stop", "ignore"] = "restart"
    restarts: Annotated[Count, Doc("at most; each halves the rate")] = 3
    update_every: Annotated[Count, Doc("student steps per generator step")] = 5

    def attach(self, setting: SourceContext) -> None:
        self._setting = setting
        networks: dict[str, type[Generator | ResizeGenerator]] = {"resize": ResizeGenerator, "dcgan": Generator}
        self._maker = GeneratorTrainer(
            setting=setting,
            generator=networks[self.network](setting.task.image_size, self.latent, self.width),
            on_collapse=self.on_collapse,
            restarts=self.restarts,
        )

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task = self._setting.task
        images = self._maker.make(self._maker.draw(self.batch_size))
        with modes.looked_through(student, self.student_mode):
            answers = student(images)
        outputs = self._setting.teacher(images)
        disagreement = task.disagreement(answers, outputs)
        loss = losses.dfad_generator_loss(disagreement) if self.objective == "log" else -disagreement
        falls = sum(step >= fraction * self._setting.steps for fraction in self.decay_at)
        self._maker.step(loss, self.lr * 0.1**falls * self._maker.guard.caution)
        signals = self._maker.guard.after(step, task, images, outputs)
        return {"generator": loss.detach(), "disagreement": disagreement.detach(), **signals}

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        return Batch(images=self._maker.make(self._maker.draw(n)))

    def validation_images(self, n: int) -> Tensor:
        return self._maker.validation_images(n)

    def state_dict(self) -> dict[str, Any]:
        return self._maker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._maker.load_state_dict(state)

    def artefacts(self) -> dict[str, nn.Module]:
        return {"generator": self._maker.generator}

    def notes(self) -> list[str]:
        return list(self._maker.guard.history)
