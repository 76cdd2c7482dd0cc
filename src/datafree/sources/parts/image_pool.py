"""A replay buffer with augmentation: a bank of finished images, shifted and flipped anew each time they are drawn.

B images, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datafree.ops import augment
from datafree.ops.whole_batch import part_of
from datafree.sources.base import Batch, SourceContext
from datafree.sources.parts.memory_bank import Bank


@dataclass(kw_only=True)
class ImagePool:
    """Keeps what was made, hands it out again and again.

    A student sees each image many times, so each time it is shifted and mirrored anew, as in the public code of
    DeepInversion's, CMI's and Fast-DFKD's comparisons. Before anything is made there is nothing but noise.
    """

    context: SourceContext
    capacity: int  # images
    shift: int  # pixels at most; 0 = images come as they were made
    crop: float = 1.0  # least area of the crops that come in their place; 1 = they come whole

    def __post_init__(self) -> None:
        self._bank = Bank(capacity=part_of(self.capacity))

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Keep images (B, 3, H, W) in [0, 1] and their targets (B, ...), or hand them to `on_finished_batch`."""
        if self.context.on_finished_batch is not None:
            self.context.on_finished_batch(Batch(images=images, targets=targets))
        else:
            self._bank.add(images, targets)

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        """n images to learn from; noise without targets while there are none."""
        if not len(self._bank):
            return Batch(images=torch.rand(n, 3, *self.context.task.image_size, device=self.context.device))
        images, targets = self._bank.sample(n)
        if self.shift:
            task = self.context.task
            images, move = augment.shift_and_flip(images, self.shift, task.padding_mode)
            targets = None if targets is None else task.move_targets(targets, move)
        if self.crop < 1:
            images, move = augment.area_crop(images, self.crop)
            targets = None if targets is None else self.context.task.move_targets(targets, move)
        return Batch(images=images.clamp(0, 1), targets=targets)

    def validation_images(self, n: int) -> Tensor:
        """Up to n images that `sample` never returns; noise, always the same, while none are set aside."""
        images = self._bank.validation_images(n)
        if images is not None:
            return images
        generator = torch.Generator().manual_seed(self.context.seed + 1)
        return torch.rand(n, 3, *self.context.task.image_size, generator=generator).to(self.context.device)

    def validation_targets(self, n: int) -> Tensor | None:
        """What the images of `validation_images(n)` show; None while that is noise, or without targets."""
        return self._bank.validation_targets(n)

    def state_dict(self) -> dict[str, Any]:
        """The bank."""
        return self._bank.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._bank.load_state_dict(state, self.context.device)
