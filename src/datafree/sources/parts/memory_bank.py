"""A replay buffer of generated images, 8 bits a channel: a student that sees old ones again does not forget them.

B images, H x W pixels, N images in the bank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from datafree.errors import DataError
from datafree.ops.upload import uploaded

ROOM = 2_000_000_000  # bytes that the images of a bank take at most whose size was not stated
VALIDATION_EVERY = 16  # every 16th image is set aside for validation
RESERVE = 64  # of these, at most


def default_capacity(most: int, image_size: tuple[int, int]) -> int:
    """Images of (H, W) in a bank whose size was not stated: `most`, or as many as `ROOM` bytes hold."""
    return max(1, min(most, ROOM // (3 * math.prod(image_size))))


def held_out(made: int) -> int:
    """Images that are set aside for validation of so many that were added."""
    return min(RESERVE, made // VALIDATION_EVERY)


@dataclass(kw_only=True)
class Bank:
    """The latest `capacity` images that were added, with their targets; and a few that are never drawn.

    Images are kept as bytes on the device they came from: 32 x 32 pixels take 3 kB, 224 x 224 take 150 kB. Class ids
    are kept in 16 bits (up to 32,767): masks take two bytes a pixel. All of it is taken when the first image comes.
    """

    capacity: int  # images
    reserve: int = RESERVE  # held-out images at most
    added: int = field(default=0, init=False)  # in all

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise DataError(f"a bank of {self.capacity} images holds nothing; give 1 or more")
        self._train = _Ring(self.capacity)
        self._validation = _Ring(self.reserve)

    def __len__(self) -> int:
        """Images that can be drawn."""
        return self._train.count

    def add(self, images: Tensor, targets: Tensor | None = None) -> None:
        """Add images (B, 3, H, W) in [0, 1] and their targets (B, ...). The oldest make room."""
        held = torch.arange(self.added, self.added + len(images)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
        self.added += len(images)
        if targets is not None and targets.dtype == torch.int64:
            targets = targets.to(torch.int16)
        data = (images.detach() * 255).round_().clamp_(0, 255).to(torch.uint8)
        for ring, mask in ((self._train, ~held), (self._validation, held)):
            chosen = uploaded(mask.nonzero()[:, 0], images.device)  # found on the host: a mask of the device's waits
            ring.add(data[chosen], None if targets is None else targets[chosen])

    def sample(self, n: int) -> tuple[Tensor, Tensor | None]:
        """n images (n, 3, H, W) in [0, 1], drawn evenly (with repetition), and their targets or None."""
        assert len(self), "an empty bank has nothing to draw"
        index = torch.randint(len(self), (n,), device=self._train.images.device)
        return self._train.at(index)

    def validation_images(self, n: int) -> Tensor | None:
        """Up to n images that `sample` never returns, or None while there are none."""
        if not self._validation.count:
            return None
        return self._validation.at(slice(0, min(n, self._validation.count)))[0]

    def validation_targets(self, n: int) -> Tensor | None:
        """The targets of `validation_images(n)`; None while there are none."""
        if not self._validation.count:
            return None
        return self._validation.at(slice(0, min(n, self._validation.count)))[1]

    def state_dict(self) -> dict[str, Any]:
        """Everything, the cursors too."""
        return {"added": self.added, "kept": self._train.state_dict(), "held": self._validation.state_dict()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Put back what `state_dict` returned."""
        self.added = state["added"]
        self._train.load_state_dict(state["kept"], device)
        self._validation.load_state_dict(state["held"], device)


class _Ring:
    """A fixed number of places that are filled in turn, then over again."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count, self.cursor = capacity, 0, 0
        self.images = torch.empty(0, dtype=torch.uint8)
        self.targets: Tensor | None = None

    def add(self, images: Tensor, targets: Tensor | None) -> None:
        first = max(0, len(images) - self.capacity)  # only the latest have room
        images, targets = images[first:], None if targets is None else targets[first:]
        if not len(images):
            return
        if not self.count:  # memory is taken whole, once: a bank that does not fit fails at the first image
            self.images = images.new_empty(self.capacity, *images.shape[1:])
            self.targets = None if targets is None else targets.new_empty(self.capacity, *targets.shape[1:])
        places = (torch.arange(len(images), device=images.device) + self.cursor) % self.capacity
        self.images[places] = images
        if self.targets is not None and targets is not None:
            self.targets[places] = targets
        self.cursor = (self.cursor + len(images)) % self.capacity
        self.count = min(self.count + len(images), self.capacity)

    def at(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        targets = None if self.targets is None else self.targets[index]
        if targets is not None and targets.dtype == torch.int16:
            targets = targets.long()
        return self.images[index].float() / 255, targets

    def state_dict(self) -> dict[str, Any]:
        targets = None if self.targets is None else self.targets[: self.count].clone()
        return {"images": self.images[: self.count].clone(), "targets": targets, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.count = self.cursor = 0
        images, targets, cursor = state["images"].to(device), state["targets"], state["cursor"]
        targets = None if targets is None else targets.to(device)
        if len(images) == self.capacity or cursor == len(images):
            self.add(images, targets)
            self.cursor = cursor
        else:  # another number of processes shared it: by age, the latest have room
            self.add(images.roll(-cursor, 0), None if targets is None else targets.roll(-cursor, 0))
