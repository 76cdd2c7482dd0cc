"""Noise images: the baseline that must lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.sources.base import Batch, ImageSource, SourceContext


@final
@dataclass(kw_only=True)
class Noise(ImageSource):
    """Independent noise at every pixel and channel: the baseline that every other source must beat."""

    kind: Annotated[Literal["uniform", "gaussian"], Doc("U(0, 1), or N(0.5, 0.25) clipped to [0, 1]")] = "uniform"

    def attach(self, context: SourceContext) -> None:
        self._context = context

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        return {}

    def sample(self, n: int) -> Batch:
        return Batch(images=self._make(n, None))

    def validation_images(self, n: int) -> Tensor:
        return self._make(n, torch.Generator().manual_seed(self._context.seed + 1))

    def _make(self, n: int, generator: torch.Generator | None) -> Tensor:
        shape = (n, 3, *self._context.task.image_size)
        device = torch.device("cpu") if generator else self._context.device
        if self.kind == "uniform":
            images = torch.rand(shape, generator=generator, device=device)
        else:
            images = (torch.randn(shape, generator=generator, device=device) * 0.25 + 0.5).clamp(0, 1)
        return images.to(self._context.device)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state
