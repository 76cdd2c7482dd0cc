"""DFAD: a generator that looks for images on which student and teacher disagree. No proxy images at all.

Gongfan Fang et al., "Data-Free Adversarial Distillation", arXiv 1912.11006 (2019); settings of its public CamVid script
(docs/methods.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from datafree import losses, modes
from datafree.networks.generators import Generator
from datafree.sources.base import Batch, ImageSource, Setting


@final
@dataclass(kw_only=True)
class Dfad(ImageSource):
    """The generator climbs the disagreement |s - t| of student and teacher, which the student then learns away.

    One update is one generator step; the published rhythm is five student steps to each. Use it with task.distill=l1,
    the student's published loss. There is nothing fixed to hold out: `held_out` shows what the generator makes now.
    """

    latent: int = 256  # Z
    width: int = 64  # channels of the generator's widest-resolution layer
    batch_size: int = 64  # images per generator step
    lr: float = 1e-3  # Adam's
    decay_at: tuple[float, ...] = (1 / 3, 2 / 3)  # fractions of the run at which lr falls to a tenth
    student_mode: Literal["train", "eval"] = "train"  # of the student's BatchNorm while the generator looks through it
    update_every: int = 5  # student steps per generator step

    def attach(self, setting: Setting) -> None:
        self._setting = setting
        self._generator = Generator(setting.task.image_size, self.latent, self.width)
        self._generator.to(setting.device).to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.Adam(self._generator.parameters(), self.lr, fused=True)

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        falls = sum(step >= fraction * self._setting.steps for fraction in self.decay_at)
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr * 0.1**falls
        images = self._make(self.batch_size)
        with modes.looked_through(student, self.student_mode):
            loss = losses.dfad_generator_loss(student(images), self._setting.teacher(images))
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        return {"generator": loss.detach(), "disagreement": loss.detach().neg().expm1()}

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        return Batch(images=self._make(n))

    @torch.no_grad()
    def held_out(self, n: int) -> Tensor:
        latents = self._generator.draw_latents(
            n, self._setting.device, torch.Generator().manual_seed(self._setting.seed + 1)
        )
        self._generator.eval()  # the running statistics: looking may not change them
        with self._setting.autocast():
            images: Tensor = self._generator(latents)
        return images

    def _make(self, n: int) -> Tensor:
        self._generator.train()  # batch statistics in both halves of the game, as published
        with self._setting.autocast():
            images: Tensor = self._generator(self._generator.draw_latents(n, self._setting.device))
        return images

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.load_state_dict(state["generator"])
        self._optimizer.load_state_dict(state["optimizer"])

    def artefacts(self) -> dict[str, nn.Module]:
        return {"generator": self._generator}
