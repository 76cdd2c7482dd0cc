"""What tests of shards share: small batches and the recipe they are of."""

from __future__ import annotations

import torch

from datafree.sources.base import Batch
from datafree.tasks.base import Task
from datafree.tasks.detection import Detection

RECIPE = {"training": {"seed": 0}}


SIZE = (8, 12)


DETECTION = Detection(num_classes=2, image_size=SIZE, max_boxes=3)


def batch_of(task: Task, count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, *SIZE, generator=generator)
    return Batch(images=images, targets=task.sample_targets(count, torch.device("cpu"), generator))
