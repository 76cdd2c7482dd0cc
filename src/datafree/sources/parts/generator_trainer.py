"""Training of a generator: the network, its Adam optimiser, its guard against mode collapse, its validation
latents, the average of its weights.

B images, C classes, Z latent dimensions, H x W pixels, h x w the cells of a class map.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datafree.distributed import divided, replicas
from datafree.health.guard import Guard, Stateful
from datafree.networks import moving_average
from datafree.networks.generators import Generator, ResizeGenerator
from datafree.ops import modes
from datafree.sources.base import SourceContext


@dataclass(kw_only=True)
class GeneratorTrainer:
    """A generator that is being trained by Adam: makes images, takes steps, is put back when it collapses.

    What is minimised stays in the source; so does where `guard.caution` goes: the rate, or the weight of a term, which
    is then to be `guard.what`.
    """

    context: SourceContext
    generator: Generator | ResizeGenerator  # is moved to the context's device
    beta1: float = 0.9  # Adam's
    on_collapse: Literal["restart", "stop", "ignore"] = "restart"
    restarts: int = 3  # at most
    momentum: float = 0.0  # of the average of the generator's weights that makes images for the student; 0: none does
    optimizer: torch.optim.Optimizer = field(init=False)
    guard: Guard = field(init=False)
    average: Generator | ResizeGenerator | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        replicas.share(self.context.speed.laid_out(self.generator.to(self.context.device)))
        self.optimizer = self.context.speed.adam(self.generator.parameters(), 1e-3, (self.beta1, 0.999))  # see `step`
        parts: dict[str, Stateful] = {"generator": self.generator, "optimizer": self.optimizer}
        if self.momentum:
            self.average = replicas.share(copy.deepcopy(self.generator).requires_grad_(False))
            parts["average"] = self.average  # else it would remember the collapse
        self.guard = Guard(
            parts=parts,
            what="source.lr",
            say=self.context.say,
            on_collapse=self.on_collapse,
            restarts=self.restarts,
        )

    def draw(self, n: int) -> Tensor:
        """n fresh latents (n, Z)."""
        return self.generator.draw_latents(n, self.context.device)

    def make(self, latents: Tensor, class_maps: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) of latents (B, Z), and of class maps (B, C, h, w) if the generator takes them.

        By batch statistics, as the public code of adversarial methods does for both players.
        """
        self.generator.train()
        return self._forward(self.generator, latents, class_maps)

    @torch.no_grad()
    def make_for_student(self, latents: Tensor, class_maps: Tensor | None = None) -> Tensor:
        """As `make`, but the latter half of the latents through the generator's average, where there is one.

        Do et al., "Momentum Adversarial Distillation", NeurIPS 2022, arXiv 2209.10359: the average, which changes
        less, reminds the student of what it has learnt. Of an odd number the generator makes the larger half.
        """
        own = len(latents) if self.average is None else len(latents) - len(latents) // 2
        images = self.make(latents[:own], None if class_maps is None else class_maps[:own])
        if self.average is None or own == len(latents):
            return images
        with modes.looked_through(self.average, "train"):  # its running statistics are averages
            late = self._forward(self.average, latents[own:], None if class_maps is None else class_maps[own:])
        return torch.cat([images, late])

    @torch.no_grad()
    def validation_images(self, n: int, class_maps: Tensor | None = None) -> Tensor:
        """n images of latents that depend on the seed only, by the running statistics: looking leaves no trace."""
        fixed = torch.Generator().manual_seed(self.context.seed + 1)
        self.generator.eval()
        return self._forward(self.generator, self.generator.draw_latents(n, self.context.device, fixed), class_maps)

    def _forward(self, network: nn.Module, latents: Tensor, class_maps: Tensor | None) -> Tensor:
        with self.context.autocast():
            images: Tensor = network(latents) if class_maps is None else network(latents, class_maps)
        return images

    def step(self, loss: Tensor, lr: float, clip: float = 0.0) -> None:
        """One step of the optimiser down `loss`; `clip`: largest norm of the gradient, 0 = any."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.context.lr_scale()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        divided.average_gradients(self.generator.parameters())
        if clip:
            nn.utils.clip_grad_norm_(self.generator.parameters(), clip)
        self.optimizer.step()
        if self.average is not None:
            moving_average.take_in(self.average.state_dict(), self.generator.state_dict(), self.momentum)

    def state_dict(self) -> dict[str, Any]:
        """Generator, optimiser, guard, and the average if there is one."""
        state = {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
        }
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
