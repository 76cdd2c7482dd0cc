"""What a source comes to hold during a run: its banks of images, and how its state grows by updates."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

import torch

from datafree.recipe.training import Training
from datafree.sources.base import ImageSource


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a source's state grows by its updates at a step."""

    each: float  # bytes an image that was made
    made: int  # images

    @classmethod
    def of(cls, sizes: list[int], images: int, made: int) -> Growth:
        """From bytes before and after updates of so many `images`: now and then one keeps more, as a guard does."""
        added = [after - before for before, after in itertools.pairwise(sizes)]
        return cls(each=statistics.median_low(added) / images, made=made)


def early_and_late(source: ImageSource, steps: range) -> list[tuple[int, int]]:
    """A step before the student's first, and that one, each with how often an update like its own is due."""
    return [
        (-1, source.count_due(range(steps.start, min(steps.stop, 0)))),
        (0, source.count_due(range(max(steps.start, 0), steps.stop))),
    ]


def banks_of(source: ImageSource, training: Training, image_size: tuple[int, int], device: torch.device) -> int:
    """Bytes of the images in a source's banks at the end, 8 bits a channel.

    They are asked for whole with the first image (`memory_bank.Bank`). A GPU gives them then; a host, page by page,
    what is written: no more than is made.
    """
    steps, held = range(-source.warmup, training.steps), 0
    for each in source.all_sources():
        due, size = each.count_due(steps), each.update_size()
        most = due * size.images if each.finishes and size is not None and device.type == "cpu" else math.inf
        held += int(min(each.bank_images(), most)) if due else 0
    return held * 3 * math.prod(image_size)
