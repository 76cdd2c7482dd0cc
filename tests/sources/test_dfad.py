import pytest
import torch

from datafree import modes
from datafree.networks.normalized import Normalized
from datafree.networks.small import unet
from datafree.sources import Dfad
from datafree.sources.base import Setting
from datafree.tasks.segmentation import Segmentation

SIZE = (32, 32)


def test_generator_climbs_the_disagreement_of_student_and_teacher() -> None:
    modes.seed_everything(0)
    teacher, student = (Normalized(unet(4, width=4, depth=2)) for _ in range(2))
    for _ in range(5):
        images = torch.rand(8, 3, *SIZE)
        teacher(images), student(images)
    teacher.eval().requires_grad_(False)
    source = Dfad(width=4, latent=8, batch_size=8, lr=3e-3)
    task = Segmentation(num_classes=4, image_size=SIZE)
    source.attach(Setting(task=task, teacher=teacher, steps=100, batch_size=4))
    first = source.update(student, 0)
    for _ in range(80):
        last = source.update(student, 0)
    assert last["disagreement"] > 1.1 * first["disagreement"]
    assert last["generator"].item() == pytest.approx(-torch.log1p(last["disagreement"]).item(), rel=1e-5)


def test_rate_falls_to_a_tenth_at_each_third_of_the_run() -> None:
    teacher = Normalized(unet(4, width=4, depth=2)).eval().requires_grad_(False)
    source = Dfad(width=4, latent=8, batch_size=2, lr=1e-3)
    task = Segmentation(num_classes=4, image_size=SIZE)
    source.attach(Setting(task=task, teacher=teacher, steps=90, batch_size=4))
    rates = []
    for step in (0, 29, 30, 60, 89):
        source.update(unet(4, width=4, depth=2), step)
        rates.append(source._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-5])


def test_five_student_steps_to_one_generator_step_from_the_start() -> None:
    assert [step for step in range(-3, 12) if Dfad().due(step)] == [0, 5, 10]
