"""What the images that a source holds out say of teacher and student: figures without labels, and a picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree import health, modes
from datafree.pictures import grid
from datafree.sources.base import ImageSource
from datafree.tasks.base import Task

COMPARED = 64  # images on which student and teacher are compared
SHOWN = 8  # images in a picture


@torch.no_grad()
def signals(task: Task, teacher: nn.Module, student: nn.Module, source: ImageSource) -> dict[str, float]:
    """What held-out images say without labels: `health.signals`, and `agreement` as the task measures it in [0, 1] (the
    fraction of images or pixels on which both networks name the same class; for detection the F1 of the student's
    boxes with the teacher's as the truth). Empty without images."""
    images = source.held_out(COMPARED)
    if not len(images):
        return {}
    with modes.frozen(student):
        answers = task.join([teacher(part) for part in torch.split(images, 16)])
        agreement = task.agreement(task.join([student(part) for part in torch.split(images, 16)]), answers)
    found = {f"held_out_{name}": float(value) for name, value in health.signals(task, images, answers).items()}
    return {"agreement": agreement, **found}


@torch.no_grad()
def picture(task: Task, teacher: nn.Module, student: nn.Module, source: ImageSource, *, trained: bool) -> Tensor | None:
    """What the source makes, what the teacher sees in it, and (once it is trained) what the student sees."""
    images = source.held_out(SHOWN)
    if not len(images):
        return None
    rows = [images, task.draw(images, teacher(images))]
    if trained:
        with modes.frozen(student):
            rows.append(task.draw(images, student(images)))
    return grid(rows)
