"""The abstract class of methods that train one generator for the whole run: what their `GeneratorTrainer` answers.

B images, Z latent dimensions, H x W pixels.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, Momentum, PositiveInt
from datafree.networks.generators import Generator, ResizeGenerator
from datafree.sources.base import Batch, ImageSource, SourceContext, UpdateSize
from datafree.sources.parts.generator_trainer import GeneratorTrainer


@dataclass(kw_only=True)
class GeneratorSource(ImageSource, ABC):
    """A source with a generator that is trained by Adam and guarded. `update`, with its losses, is the method's own.

    Images are made anew for each batch; a method that keeps some says so in `sample` and in its state.
    """

    batch_size: PositiveInt  # each method has a default of its own
    generator_ema: Annotated[
        Momentum, Doc("of an average of the generator's weights, which makes half of the student's images; 0 = none")
    ] = 0.0
    on_collapse: Literal["restart", "stop", "ignore"] = "restart"
    restarts: Annotated[Count, Doc("at most")] = 3

    def attach_generator(
        self, context: SourceContext, generator: Generator | ResizeGenerator, beta1: float = 0.9
    ) -> None:
        """Hold the run's context, and the trainer of `generator`. For the method's `attach`."""
        self._context: SourceContext = context
        self._trainer: GeneratorTrainer = GeneratorTrainer(
            context=context,
            generator=generator,
            beta1=beta1,
            on_collapse=self.on_collapse,
            restarts=self.restarts,
            momentum=self.generator_ema,
        )

    def update_size(self) -> UpdateSize:
        return UpdateSize(images=self.batch_size)

    def resize_updates(self, size: UpdateSize) -> None:
        self.batch_size = size.images

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        return Batch(images=self._trainer.make_for_student(self._trainer.draw(n)))

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
