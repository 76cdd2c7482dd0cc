"""The abstract class of methods whose updates finish batches of images: what their `ImagePool` answers.

B images, H x W pixels.
"""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from torch import Tensor

from datafree.errors import DataError
from datafree.sources.base import Batch, ImageSource, SourceContext, UpdateSize
from datafree.sources.parts.image_pool import ImagePool
from datafree.sources.parts.memory_bank import default_capacity


class PoolSource(ImageSource, ABC):
    """A source whose update makes one batch of images and targets, and adds it to a pool that the student draws from.

    `update`, with its losses, is the method's own. Some of the pool's images are never drawn: those for validation.
    """

    finishes: ClassVar[bool] = True
    most_banked: ClassVar[int] = 60_000  # images in a bank whose size is not stated, where these are small

    # Options that every such method has, each with a default of its own.
    batch_size: int
    shift: int
    bank_size: int | None
    iterations: int  # of an update; a method of several stages has these instead, and its own `update_size`

    _context: SourceContext
    _pool: ImagePool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.warmup and not self.update_every:
            raise DataError("warmup and update_every are both 0: no image would ever be made; set one of them")

    def attach_pool(self, context: SourceContext, crop: float = 1.0) -> None:
        """Hold the run's context, and an empty pool; `crop`: see there. For the method's `attach`."""
        self._context = context
        self.size_bank(context.task.image_size)
        self._pool = ImagePool(context=context, capacity=self.bank_images(), shift=self.shift, crop=crop)

    def update_size(self) -> UpdateSize:
        return UpdateSize(images=self.batch_size, iterations=(self.iterations,))

    def resize_updates(self, size: UpdateSize) -> None:
        self.batch_size, (self.iterations,) = size.images, size.iterations

    def bank_images(self) -> int:
        return self.most_banked if self.bank_size is None else self.bank_size

    def size_bank(self, image_size: tuple[int, int]) -> None:
        if self.bank_size is None:
            self.bank_size = default_capacity(self.most_banked, image_size)

    def sample(self, n: int) -> Batch:
        return self._pool.sample(n)

    def validation_images(self, n: int) -> Tensor:
        return self._pool.validation_images(n)

    def validation_targets(self, n: int) -> Tensor | None:
        return self._pool.validation_targets(n)
