"""What the sources that hold a GeneratorTrainer owe, each of them: precision, the guard, exact states."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.errors import TrainingError
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.sources import Cgdd, Dafl, Dfad, Zskt
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


# The average of the generator (MAD): every method that has a trainer.

ALL: list[type[Any]] = [Cgdd, *METHODS]


@pytest.mark.parametrize("method", ALL)
def test_the_average_follows_the_generator_by_its_momentum_and_drawing_leaves_it_alone(method: type[Any]) -> None:
    """G~ <- a G~ + (1 - a) G after each step of the generator, from G~ = G."""
    source, student = attached(method, generator_ema=0.75)
    average = source._trainer.average
    assert average is not None
    expected = [parameter.detach().clone() for parameter in source._trainer.generator.parameters()]
    for step in range(3):
        source.update(student, step)
        new = source._trainer.generator.parameters()
        expected = [0.75 * old + 0.25 * parameter.detach() for old, parameter in zip(expected, new, strict=True)]
        before = copy.deepcopy(average.state_dict())
        source.sample(11)
        assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())
    torch.testing.assert_close(list(average.parameters()), expected)


@pytest.mark.parametrize(("n", "own"), [(1, 1), (7, 4), (8, 4)])
def test_half_of_the_images_for_a_student_are_the_averages(n: int, own: int) -> None:
    """The two terms of MAD's student loss, E_z of G(z) and of G~(z): each by the statistics of its own half."""
    source, student = attached(Cgdd, generator_ema=0.9)
    for step in range(2):
        source.update(student, step)
    trainer = source._trainer
    first, average = copy.deepcopy(trainer.generator).train(), copy.deepcopy(trainer.average)
    assert average is not None
    z, maps = torch.randn(n, 8), torch.eye(3)[torch.arange(n) % 3][:, :, None, None]
    with torch.no_grad():
        halves = [first(z[:own], maps[:own]), *([average.train()(z[own:], maps[own:])] if own < n else [])]
    assert torch.equal(trainer.make_for_student(z, maps), torch.cat(halves))
    assert len(halves) == 1 or not torch.allclose(halves[1], first(z[own:], maps[own:]), atol=1e-4)


@pytest.mark.parametrize("method", ALL)
def test_a_student_draws_half_of_its_new_images_from_the_average_and_no_other_number_is_drawn(
    method: type[Any],
) -> None:
    options = {"replay": 0.0} if method is Cgdd else {}
    made: list[int] = []
    states = []
    for momentum in (0.0, 0.9):
        source, student = attached(method, generator_ema=momentum, **options)
        if source._trainer.average is not None:
            source._trainer.average.register_forward_hook(lambda module, args, images: made.append(len(args[0])))
        source.update(student, 0)
        source.sample(11)
        states.append(torch.get_rng_state())
    assert made == ([4, 1] if method is Zskt else [5])  # of ZSKT's update 8 are drawn again and again, and 3 are new
    assert torch.equal(*states)


@pytest.mark.parametrize("method", ALL)
def test_collapse_puts_the_average_back_too(method: type[Any]) -> None:
    source, student = attached(method, generator_ema=0.5)
    guard, average = source._trainer.guard, source._trainer.average
    assert average is not None
    guard.every = guard.patience = 1
    guard.min_diversity = guard.min_balance = 0.0
    source.update(student, 0)
    healthy = {name: value.clone() for name, value in average.state_dict().items()}
    guard.min_diversity = 1.0
    source.update(student, 1)
    assert all(torch.equal(value, healthy[name]) for name, value in average.state_dict().items())


@pytest.mark.parametrize("method", ALL)
def test_a_saved_average_goes_on_to_the_same_bits(method: type[Any]) -> None:
    def work(source: Adversary, student: Normalized, steps: range) -> list[Tensor]:
        images = []
        for step in steps:
            source.update(student, step)
            images.append(source.sample(5).images)
        return images

    source, student = attached(method, generator_ema=0.9)
    work(source, student, range(3))
    file = io.BytesIO()
    torch.save({"source": source.state_dict(), "random": modes.random_state()}, file)
    expected = work(source, student, range(3, 6))
    other, again = attached(method, generator_ema=0.9)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["source"])
    modes.set_random_state(saved["random"])
    assert all(map(torch.equal, work(other, again, range(3, 6)), expected))
    assert "average" not in attached(method)[0].state_dict()
