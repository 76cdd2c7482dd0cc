import math

import pytest
import torch
from torch import nn

from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.sources import Zskt
from datafree.sources.base import SourceContext
from datafree.tasks.classification import Classification

C, SIZE = 3, (32, 32)


def made(**options: float) -> tuple[Zskt, nn.Module, nn.Module]:
    """A small source attached to a teacher, the teacher, and a student whose answers differ."""
    modes.seed_everything(0)
    teacher, student = (Normalized(resnet(C, depth=8, width=4)) for _ in range(2))
    for _ in range(3):
        images = torch.rand(8, 3, *SIZE)
        teacher(images), student(images)
    teacher.eval().requires_grad_(False)
    source = Zskt(**{"width": 4, "latent": 8, "batch_size": 8, **options})  # type: ignore[arg-type]
    task = Classification(num_classes=C, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=8))
    return source, teacher, student


def in_order(images: torch.Tensor) -> torch.Tensor:
    """A batch sorted by its images' sums: two batches are the same set if these are equal."""
    return images[images.sum((1, 2, 3)).argsort()]


def test_defaults_are_the_published_ones() -> None:
    source = Zskt()
    assert (source.batch_size, source.latent, source.lr, source.clip) == (128, 100, 1e-3, 5.0)
    assert [step for step in range(-5, 31) if source.due(step)] == [0, 10, 20, 30]


@pytest.mark.thorough
def test_generator_climbs_the_divergence_of_a_student_that_stands_still() -> None:
    source, _, student = made(lr=3e-3, batch_size=16)
    seen = [source.update(student, 0)["divergence"] for _ in range(21)]
    assert seen[-1] > 1.1 * seen[0]


def test_divergence_is_kl_of_teacher_and_student_and_the_step_goes_up_it_clipped() -> None:
    source, teacher, student = made(clip=1e-4)
    modes.seed_everything(3)
    images = source._trainer.make(source._trainer.draw(8))
    with modes.looked_through(student, "train"):
        log_s, log_t = student(images).log_softmax(1), teacher(images).log_softmax(1)
    kl = (log_t.exp() * (log_t - log_s)).sum(1).mean()
    parameters = list(source._trainer.generator.parameters())
    gradients = torch.autograd.grad(-kl / C, parameters)  # the public code's mean is over classes too
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    assert norm > 1e-4
    modes.seed_everything(3)
    assert source.update(student, 0)["divergence"].item() == pytest.approx(kl.item(), rel=1e-4)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient * 1e-4 / norm, atol=1e-9, rtol=1e-2)


def test_student_steps_between_updates_are_all_on_the_updated_generators_images() -> None:
    source, _, student = made()
    modes.seed_everything(3)
    latents = source._trainer.draw(8)
    modes.seed_everything(3)
    source.update(student, 0)
    expected = in_order(source._trainer.make(latents).detach())
    batches = [source.sample(8).images for _ in range(3)]
    for batch in batches:
        assert torch.equal(in_order(batch), expected)
    source.update(student, 10)
    assert not torch.equal(in_order(source.sample(8).images), expected)


def test_small_batches_are_drawn_from_the_update_and_large_ones_filled_up() -> None:
    source, _, student = made()
    source.update(student, 0)
    of_update = source.sample(8).images
    for image in source.sample(3).images:
        assert any(torch.equal(image, other) for other in of_update)
    larger = source.sample(11).images
    assert larger.shape == (11, 3, *SIZE)
    assert torch.equal(in_order(larger[:8]), in_order(of_update))
    assert not any(torch.equal(larger[9], other) for other in of_update)


def test_rate_falls_to_zero_along_a_cosine() -> None:
    source, _, student = made()
    rates = []
    for step in (0, 50, 99):
        source.update(student, step)
        rates.append(source._trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 0.5e-3, 1e-3 * (1 + math.cos(0.99 * math.pi)) / 2])
