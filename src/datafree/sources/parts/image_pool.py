"""What a source draws from that makes its images a batch at a time: a bank, looked at with small moves.

B images, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datafree.ops import augment
from datafree.sources.base import Batch, SourceContext
from datafree.sources.parts.memory_bank import Bank


@dataclass(kw_only=True)
class ImagePool:
    """Keeps what was made, hands it out again and again.

    A student sees each image many times, so each time it is shifted and mirrored anew, as in the public code of
    DeepInversion's, CMI's and Fast-DFKD's comparisons. Before anything is made there is nothing but noise.
    """

    setting: SourceContext
    capacity: int  # images
    shift: int  # pixels at most; 0 = images come as they were made

    def __post_init__(self) -> None:
        self._bank = Bank(capacity=self.capacity)

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Keep images (B, 3, H, W) in [0, 1] and their targets (B, ...), or give them to `SourceContext.keep`."""
        if self.setting.keep is not None:
            self.setting.keep(Batch(images=images, targets=targets))
        else:
            self._bank.add(images, targets)

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        """n images to learn from; noise without targets while there are none."""
        if not len(self._bank):
            return Batch(images=torch.rand(n, 3, *self.setting.task.image_size, device=self.setting.device))
        images, targets = self._bank.sample(n)
        if self.shift:
            task = self.setting.task
            images, move = augment.shift_and_flip(images, self.shift, task.padding_mode)
            targets = None if targets is None else task.move_targets(targets, move)
        return Batch(images=images.clamp(0, 1), targets=targets)

    def validation_images(self, n: int) -> Tensor:
        """Up to n images that `sample` never returns; noise, always the same, while none are set aside."""
        images = self._bank.validation_images(n)
        if images is not None:
            return images
        generator = torch.Generator().manual_seed(self.setting.seed + 1)
        return torch.rand(n, 3, *self.setting.task.image_size, generator=generator).to(self.setting.device)

    def validation_targets(self, n: int) -> Tensor | None:
        """What the images of `validation_images(n)` show; None while that is noise, or without targets."""
        return self._bank.validation_targets(n)

    def state_dict(self) -> dict[str, Any]:
        """The bank."""
        return self._bank.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._bank.load_state_dict(state, self.setting.device)
