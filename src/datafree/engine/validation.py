"""Validation without labels: metrics of teacher and student on the source's validation images, and a picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.data.visualize import grid
from datafree.health.signals import health_metrics
from datafree.ops import modes
from datafree.sources.base import ImageSource
from datafree.tasks.base import Task

COMPARED = 64  # images on which student and teacher are compared
SHOWN = 8  # images in a picture


def signals(task: Task, teacher: nn.Module, student: nn.Module, source: ImageSource) -> dict[str, float]:
    """Metrics on validation images, as `datafree.health.signals.health_metrics`. Empty where there are none.

    Maps are compared pass by pass, so that all `COMPARED` images need no more memory than one pass and their pixels.
    """
    images = source.validation_images(COMPARED)
    return health_metrics(task, teacher, student, images) if len(images) else {}


@torch.no_grad()
def picture(task: Task, teacher: nn.Module, student: nn.Module, source: ImageSource, *, trained: bool) -> Tensor | None:
    """What the source makes, what the teacher sees in it, and (once it is trained) what the student sees.

    Between the images and the teacher's answers, what they were meant to show, where the source says it.
    """
    images = source.validation_images(SHOWN)
    if not len(images):
        return None
    targets = source.validation_targets(SHOWN)
    wanted = None if targets is None else task.draw_targets(images, targets)
    rows = [images, *([] if wanted is None else [wanted]), task.draw_outputs(images, teacher(images))]
    if trained:
        with modes.frozen(student):
            rows.append(task.draw_outputs(images, student(images)))
    return grid(rows)
