"""Images made within a time: by a clock that a test turns."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from datafree.deploy.calibration import made_images
from datafree.deploy.calibration.made_images import chosen, make_images
from datafree.errors import DatafreeError, Interrupted
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.sources.auto import Auto
from datafree.sources.base import Batch, SourceContext
from datafree.sources.fast import Fast
from datafree.sources.inversion import Inversion
from datafree.sources.noise import Noise
from datafree.sources.procedural.source import Procedural
from datafree.tasks.classification import Classification


@pytest.fixture
def context() -> SourceContext:
    torch.manual_seed(0)
    task = Classification(num_classes=3, image_size=(32, 32))
    network = resnet(3, depth=8, width=2)
    network(torch.rand(16, 3, 16, 16))
    return SourceContext(task=task, teacher=Normalized(network).eval(), steps=1, batch_size=4)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says."""
    now = [0.0]
    monkeypatch.setattr(made_images, "clock_of", lambda device: lambda: now[0])
    return now


def fast(**options: Any) -> Fast:
    return Fast(**{"batch_size": 4, "iterations": 1, "width": 4, "latent": 4, "bank_size": 32, **options})


def passing(source: Any, now: list[float], each: float) -> None:
    """Let an update take `each` seconds for an image and an iteration."""
    update = source.update

    def counted(student: nn.Module, step: int) -> Any:
        size = source.update_size()
        now[0] += each * (size.images * sum(size.iterations) if size.iterations else 1)
        return update(student, step)

    source.update = counted


def test_the_last_batches_of_a_trained_generator_count(context: SourceContext, seconds: list[float]) -> None:
    source = fast(warmup=5)
    passing(source, seconds, 0.01)
    made = make_images(source, context, 10, 100.0)
    assert made.updates == 5 + 3  # the warm-up, and three batches of four
    assert made.images.shape == (10, 3, 32, 32)
    assert made.images.dtype == torch.uint8


def test_where_the_time_is_over_there_are_fewer_and_a_note_says_how_long_all_take(
    context: SourceContext, seconds: list[float]
) -> None:
    source = fast(warmup=0, update_every=1)
    passing(source, seconds, 1.0)
    made = make_images(source, context, 40, 12.0)
    assert made.images.shape[0] == 12  # three updates of four images, a second each
    assert any("12 images of 40 were made in 12s (--time 44s would do for all)" in note for note in made.notes)
    with pytest.raises(DatafreeError, match="fewer than 8"):
        source = fast(warmup=0, update_every=1)
        passing(source, seconds, 1.0)
        make_images(source, context, 40, 1.0)


@pytest.mark.thorough
def test_a_method_that_starts_from_noise_takes_the_iterations_that_the_time_allows(
    context: SourceContext, seconds: list[float]
) -> None:
    source = Inversion(batch_size=4, iterations=1000, bank_size=32)
    passing(source, seconds, 0.1)
    made = make_images(source, context, 8, 42.4)
    # Two trials, 4 images and 2 iterations, take 0.8 s each; 90 % of the 40.8 s left are 367 iterations of one image.
    assert source.iterations == 45
    assert made.notes[0].startswith("45 iterations an image instead of 1,000")
    assert made.updates == 2 + 2
    assert seconds[0] <= 42.4


def test_iterations_are_timed_when_the_device_is_done_and_without_what_its_first_use_sets_up(
    context: SourceContext, seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Any = Inversion(batch_size=4, iterations=1000, bank_size=32)
    update, asked = source.update, [10.0]  # seconds of work that the device has yet to do

    def ask(student: nn.Module, step: int) -> Any:
        size = source.update_size()
        asked[0] += 0.1 * size.images * sum(size.iterations)
        return update(student, step)

    def wait_for(device: torch.device) -> None:
        seconds[0], asked[0] = seconds[0] + asked[0], 0.0

    source.update = ask
    monkeypatch.setattr(modes, "wait_for", wait_for)
    make_images(source, context, 8, 52.4)
    assert source.iterations == 45  # as above, after 10 s


def test_no_image_comes_twice_and_what_repeats_itself_is_refused(context: SourceContext) -> None:
    made = make_images(Noise(), context, 40, 100.0)
    assert len({image.numpy().tobytes() for image in made.images}) == 40

    source = Noise()
    source.sample = lambda n: Batch(images=torch.full((n, 3, 32, 32), 0.5))  # type: ignore[method-assign]
    with pytest.raises(DatafreeError, match="1 images were made"):
        make_images(source, context, 40, 100.0)


def test_a_stop_is_heard_between_updates(context: SourceContext) -> None:
    with pytest.raises(Interrupted, match="nothing was written"):
        make_images(fast(), context, 8, 100.0, stop=lambda: "SIGINT")


def test_auto_makes_images_of_any_size(context: SourceContext) -> None:
    lines: list[str] = []
    task = dataclasses.replace(context.task, image_size=(17, 19))
    context = dataclasses.replace(context, task=task, say=lines.append)
    source = chosen(Auto(), context)
    assert isinstance(source, Inversion)
    assert "inversion, as no generator makes images of 17 x 19 pixels" in lines[0]
    made = make_images(source, context, 8, 0.2)
    assert made.images.shape == (8, 3, 17, 19)


def test_auto_matches_the_few_batchnorm_layers_that_there_are(context: SourceContext) -> None:
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    network(torch.rand(16, 3, 32, 32))
    few = dataclasses.replace(context, teacher=Normalized(network).eval())
    assert isinstance(Auto().choose(few.task, few.teacher, few.device)[0], Procedural)
    assert isinstance(chosen(Auto(), few), Fast)
