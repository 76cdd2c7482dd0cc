"""What the sources that hold a GeneratorTrainer owe, each of them: precision, the guard, exact states."""

from typing import Any

import pytest
import torch

from datafree.errors import TrainingError
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.sources import Dafl, Dfad, Zskt
from datafree.sources.base import SourceContext
from datafree.tasks.classification import Classification

Adversary = Dafl | Dfad | Zskt
METHODS: list[type[Any]] = [Dafl, Dfad, Zskt]
SIZE = (32, 32)


def network(dtype: torch.dtype = torch.float32) -> Normalized:
    made = Normalized(resnet(3, depth=8, width=4), dtype=dtype)
    for _ in range(3):
        made(torch.rand(8, 3, *SIZE))
    return made


def attached(method: type[Any], dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Adversary, Normalized]:
    """A small source, and the student beside it."""
    modes.seed_everything(0)
    teacher, student = network(dtype).eval().requires_grad_(False), network(dtype)
    source: Adversary = method(width=4, latent=8, batch_size=8, **options)
    task = Classification(num_classes=3, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=1000, batch_size=4, dtype=dtype))
    return source, student


def rate(source: Adversary) -> float:
    value = source._trainer.optimizer.param_groups[0]["lr"]
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("method", METHODS)
def test_images_are_float32_and_the_generator_learns_under_bf16(method: type[Any]) -> None:
    source, student = attached(method, torch.bfloat16)
    before = source.validation_images(2)
    logs = source.update(student, 0)
    assert all(torch.isfinite(value) for value in logs.values())
    assert source.sample(3).images.dtype == source.validation_images(2).dtype == torch.float32
    assert not torch.equal(before, source.validation_images(2))


@pytest.mark.parametrize("method", METHODS)
def test_caution_scales_the_generators_rate(method: type[Any]) -> None:
    source, student = attached(method)
    source.update(student, 0)
    assert rate(source) == pytest.approx(source.lr)
    source._trainer.guard.caution = 0.25
    source.update(student, 0)
    assert rate(source) == pytest.approx(source.lr / 4)


@pytest.mark.parametrize("method", METHODS)
def test_collapse_puts_the_generator_back_and_says_so(method: type[Any]) -> None:
    source, student = attached(method, restarts=1)
    guard = source._trainer.guard
    guard.every = guard.patience = 1
    guard.min_diversity = guard.min_balance = 0.0
    source.update(student, 0)  # healthy
    healthy = [parameter.clone() for parameter in source._trainer.generator.parameters()]
    guard.min_diversity = 1.0  # from here on nothing is varied enough
    source.update(student, 1)
    assert all(map(torch.equal, source._trainer.generator.parameters(), healthy))
    assert guard.caution == 0.5
    assert "collapsed at step 1" in source.notes()[0]
    with pytest.raises(TrainingError, match=r"after 1 restart.*lower source\.lr"):
        source.update(student, 2)


@pytest.mark.parametrize("method", METHODS)
def test_collapse_stops_or_is_ignored_as_asked(method: type[Any]) -> None:
    for on_collapse in ("stop", "ignore"):
        source, student = attached(method, on_collapse=on_collapse)
        guard = source._trainer.guard
        guard.every = guard.patience = 1
        guard.min_diversity = guard.min_balance = 0.0
        source.update(student, 0)
        guard.min_diversity = 1.0
        if on_collapse == "ignore":
            source.update(student, 1)
            assert (guard.caution, source.notes()) == (1.0, [])
        else:
            with pytest.raises(TrainingError, match="collapsed"):
                source.update(student, 1)


@pytest.mark.parametrize("method", METHODS)
def test_state_holds_the_guard_too(method: type[Any]) -> None:
    source, student = attached(method)
    source.update(student, 0)
    source._trainer.guard.caution = 0.5
    other, _ = attached(method)
    other.load_state_dict(source.state_dict())
    assert other._trainer.guard.caution == 0.5
    assert torch.equal(other.validation_images(4), source.validation_images(4))
    modes.seed_everything(1)
    expected = source.sample(12).images
    modes.seed_everything(1)
    assert torch.equal(other.sample(12).images, expected)


@pytest.mark.parametrize("method", METHODS)
def test_trained_generator_is_an_artefact(method: type[Any]) -> None:
    source, _ = attached(method)
    assert set(source.artefacts()) == {"generator"}
