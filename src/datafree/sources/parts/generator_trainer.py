"""Training of a generator: the network, its Adam optimiser, its guard against mode collapse, its validation latents.

B images, C classes, Z latent dimensions, H x W pixels, h x w the cells of a class map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datafree.distributed import divided, replicas
from datafree.health.guard import Guard
from datafree.networks.generators import Generator, ResizeGenerator
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
    optimizer: torch.optim.Optimizer = field(init=False)
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        replicas.share(self.context.speed.laid_out(self.generator.to(self.context.device)))
        self.optimizer = self.context.speed.adam(self.generator.parameters(), 1e-3, (self.beta1, 0.999))  # see `step`
        self.guard = Guard(
            parts={"generator": self.generator, "optimizer": self.optimizer},
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
        return self._forward(latents, class_maps)

    @torch.no_grad()
    def validation_images(self, n: int, class_maps: Tensor | None = None) -> Tensor:
        """n images of latents that depend on the seed only, by the running statistics: looking leaves no trace."""
        fixed = torch.Generator().manual_seed(self.context.seed + 1)
        self.generator.eval()
        return self._forward(self.generator.draw_latents(n, self.context.device, fixed), class_maps)

    def _forward(self, latents: Tensor, class_maps: Tensor | None) -> Tensor:
        with self.context.autocast():
            images: Tensor = self.generator(latents) if class_maps is None else self.generator(latents, class_maps)
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

    def state_dict(self) -> dict[str, Any]:
        """Generator, optimiser and guard."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
