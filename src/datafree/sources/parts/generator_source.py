"""The abstract class of methods that train one generator for the whole run: what their `GeneratorTrainer` answers.

B images, Z latent dimensions, H x W pixels.
"""

from __future__ import annotations

from abc import ABC
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datafree.networks.generators import Generator, ResizeGenerator
from datafree.sources.base import Batch, ImageSource, SourceContext, UpdateSize
from datafree.sources.parts.generator_trainer import GeneratorTrainer


class GeneratorSource(ImageSource, ABC):
    """A source with a generator that is trained by Adam and guarded. `update`, with its losses, is the method's own.

    Images are made anew for each batch; a method that keeps some says so in `sample` and in its state.
    """

    # Options that every such method has, each with a default of its own.
    batch_size: int
    on_collapse: Literal["restart", "stop", "ignore"]
    restarts: int

    _context: SourceContext
    _trainer: GeneratorTrainer

    def attach_generator(
        self, context: SourceContext, generator: Generator | ResizeGenerator, beta1: float = 0.9
    ) -> None:
        """Hold the run's context, and the trainer of `generator`. For the method's `attach`."""
        self._context = context
        self._trainer = GeneratorTrainer(
            context=context,
            generator=generator,
            beta1=beta1,
            on_collapse=self.on_collapse,
            restarts=self.restarts,
        )

    def update_size(self) -> UpdateSize:
        return UpdateSize(images=self.batch_size)

    def resize_updates(self, size: UpdateSize) -> None:
        self.batch_size = size.images

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        return Batch(images=self._trainer.make(self._trainer.draw(n)))

    def validation_images(self, n: int) -> Tensor:
        return self._trainer.validation_images(n)

    def state_dict(self) -> dict[str, Any]:
        return self._trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trainer.load_state_dict(state)

    def artefacts(self) -> dict[str, nn.Module]:
        return {"generator": self._trainer.generator}

    def notes(self) -> list[str]:
        return list(self._trainer.guard.history)
