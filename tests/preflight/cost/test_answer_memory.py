"""Memory of passes that no backward pass follows: of the steps' answers, of looks at held-out images, of scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from datafree.engine.validation import COMPARED
from datafree.evaluation.scoring import at_once
from datafree.health.signals import health_metrics
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.preflight.cost.answer_memory import compared, peak_of
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation

MAP = 2 * 16 * 16 * 4  # bytes of a channel of two images, 16 x 16 pixels
IMAGES = torch.rand(2, 3, 16, 16)
FIRST, LAST = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3, padding=1)


def views(images: Tensor) -> Tensor:
    return images.flatten(1).view(2, 3, 16, 16).transpose(2, 3)


def dropped(images: Tensor) -> Tensor:
    """Two maps of the images' size, one after the other."""
    first = images + 1
    del first
    return images + 2


@torch.no_grad()
@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (nn.Sequential(FIRST, nn.ReLU(), LAST), 8 + 8),  # the first map lives until the second is made
        (nn.Sequential(FIRST, nn.ReLU(inplace=True), LAST), 8 + 5),
        (views, 0),
        (dropped, 3),
    ],
)
def test_values_count_while_they_live_and_once(network: Callable[[Tensor], Tensor], channels: int) -> None:
    assert peak_of(lambda: network(IMAGES)) == channels * MAP


@pytest.mark.parametrize(
    ("task", "make"),
    [
        (Classification(num_classes=7, image_size=(32, 24)), lambda width: resnet(7, depth=8, width=width)),
        (Segmentation(num_classes=21, image_size=(64, 64)), lambda width: unet(21, width=width, depth=2)),
    ],
)
def test_what_looks_and_scores_need_is_told_from_two_images(task: Task, make: Callable[[int], nn.Module]) -> None:
    """Against the peak of a real look, and of the teacher's answer to a batch that is scored."""
    teacher, student = (Normalized(make(width), (0.5,) * 3, (0.5,) * 3) for width in (8, 4))
    images = torch.rand(COMPARED, 3, *task.image_size)
    told = compared(task, teacher, student, images[:2], scored=False)
    real = images.nbytes + peak_of(lambda: health_metrics(task, teacher, student, images))
    assert 0.9 * real < told < 1.3 * real
    with torch.no_grad():
        batch = torch.rand(at_once(task), 3, *task.image_size)
        answered = batch.nbytes + peak_of(lambda: teacher.eval()(batch))
    assert compared(task, teacher, student, images[:2], scored=True) >= max(told, answered)
