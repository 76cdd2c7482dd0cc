"""A student's first weights from its teacher: `student.init: teacher`, checked before the run, done at its first step.

The images are the source's own, each mixed with another: refitted on mixtures, a half-width ResNet-20 kept 48 % of its
teacher's accuracy on CIFAR-10 without a step, on plain images of the same source 45 % (two seeds, validation images).

B images, H x W pixels.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from datafree.distributed import replicas
from datafree.errors import NetworkError
from datafree.networks.load import NetworkSpec
from datafree.networks.pruning.correspondence import WAY_OUT
from datafree.networks.pruning.fixed_time import FixedTime
from datafree.networks.pruning.start import StartOptions, start_from_teacher
from datafree.ops import augment
from datafree.sources.base import ImageSource
from datafree.tasks.base import Task, synthetic_batch

IMAGES = 512  # that layers are refitted on
PIXELS = 2**22  # of all of them at most: 83 images of 224 x 224, since a refit's time grows with the pixels
LEAST = 32  # images, whatever their size


def check_start(spec: NetworkSpec, teacher: nn.Module, student: nn.Module, task: Task) -> None:
    """Raise NetworkError if `spec` asks for a start from a teacher whose layers do not correspond to the student's.

    A copy of the student is started on two synthetic images; the student itself stays as it is.
    """
    if spec.init != "teacher":
        return
    images = synthetic_batch(task.image_size, next(student.parameters()).device)
    try:
        with replicas.single_process():
            start_from_teacher(teacher, copy.deepcopy(student), images, StartOptions(refit=None))
    except NetworkError as error:
        raise NetworkError(f"student.init=teacher cannot start {spec.network}: {error}") from error


def why_not(error: NetworkError) -> str:
    """Why a student cannot start from its teacher, for one that was chosen here: without advice to choose another."""
    return str(error).partition(": ")[2].removesuffix(f": {WAY_OUT}")


def images_of(task: Task) -> int:
    """How many images layers are refitted on."""
    height, width = task.image_size
    return max(LEAST, min(IMAGES, PIXELS // (height * width)))


def start_student(
    teacher: nn.Module,
    student: nn.Module,
    source: ImageSource,
    task: Task,
    batch: int,
    count: int | None = None,
    fixed: FixedTime | None = None,
) -> list[str]:
    """Start `student` from `teacher` on images that `source` has made, drawn `batch` at a time; lines that say how.

    Every process does all of it on the same images, so that replicas stay equal. `count`: images, if not `images_of`.
    `fixed` is told the time that does not grow with them.
    """
    count = images_of(task) if count is None else count
    drawn = [source.sample(batch).images for _ in range(-(-count // batch))]
    images = augment.blend(torch.cat(drawn)[:count], 1.0)[0]
    with replicas.single_process():
        return start_from_teacher(teacher, student, images, task=task, fixed=fixed).lines()
