"""Memory that runs out: batches are learnt from in parts where that is exact enough, else a size that fits is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree import distill
from datafree.engine import out_of_memory
from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.engine.student_step import StudentStep
from datafree.errors import TrainingError
from datafree.evaluation.scoring import evaluate
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources import Dfad, Mixed, Noise
from datafree.sources.base import Batch
from datafree.tasks.classification import Classification
from small_runs import labelled, recipe_for
from thorough import some

Refusal = Callable[[int], Exception]
REFUSALS: dict[str, Refusal] = {
    "an accelerator's": lambda n: torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {n} GiB"),
    "the host's": lambda n: RuntimeError(
        f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {n} bytes"
    ),
    "Python's": lambda n: MemoryError(),
}


def at_most(images: int, refusal: Refusal = REFUSALS["an accelerator's"]) -> Callable[..., None]:
    """A hook that has a network's forward pass run out of memory with more images than that."""

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > images:
            raise refusal(len(inputs[0]))

    return check


def learn_with(monkeypatch: pytest.MonkeyPatch, which: str, hook: Callable[..., None]) -> list[int]:
    """Have a network of the learning step run out by `hook`; the list gets the parts of each step."""
    learn, parts = StudentStep.learn, []

    def limited(student_step: StudentStep, batch: Batch, step: int) -> Any:
        handle = getattr(student_step, which).register_forward_pre_hook(hook)
        try:
            figures = learn(student_step, batch, step)
        finally:
            handle.remove()
        parts.append(student_step.recovery.parts)
        return figures

    monkeypatch.setattr(StudentStep, "learn", limited)
    return parts


@pytest.mark.parametrize("which", some(["student", "teacher"], "student"))
@pytest.mark.parametrize("refusal", some(REFUSALS, "an accelerator's"))
def test_a_batch_that_does_not_fit_is_learnt_from_in_parts_and_that_is_written_down(
    refusal: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, batch_size=4, steps=3, save_every=2, picture_every=50)
    parts = learn_with(monkeypatch, which, at_most(1, REFUSALS[refusal]))
    outcome = run_recipe(recipe, tmp_path / "run")
    assert parts == [4, 4, 4]
    written = json.loads((tmp_path / "run" / "result.json").read_text())["faults"]
    assert [line.partition(";")[2].split(",")[0] for line in written] == [
        " each batch of 4 is split into 2 micro-batches from here",
        " each batch of 4 is split into 4 micro-batches from here",
    ]
    assert set(written) <= set(outcome.notes)


def test_one_image_that_does_not_fit_ends_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, batch_size=4)
    learn_with(monkeypatch, "student", at_most(0))
    with pytest.raises(TrainingError, match="with micro-batches of one image; the checkpoint of step 0") as error:
        run_recipe(recipe, tmp_path / "run")
    assert error.value.exit_code == 3


class Pooled(nn.Module):
    """BatchNorm over a single value of each image, as behind a global pooling: it cannot learn from one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.last(self.norm(images.mean((2, 3), keepdim=True)).flatten(1))
        return answer


@pytest.mark.parametrize("batch", [3, 4, 5])
def test_a_student_that_needs_two_images_at_once_is_never_given_one(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepLabV3 is one."""
    parts, out = learn_with(monkeypatch, "student", at_most(2)), tmp_path / "run"
    task = Classification(num_classes=3, image_size=(8, 8))
    training = Training(steps=2, batch_size=batch, save_every=9, picture_every=9)

    def run() -> None:
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        distill(teacher=teacher, student=Pooled(), task=task, source=Noise(), training=training, out=out)

    if batch == 4:
        run()
        assert parts == [2, 2]
    else:  # one part of two would be of three images, or one of three of one
        with pytest.raises(TrainingError, match="out of memory in the student's step at step 0") as error:
            run()
        assert ("with micro-batches of 2 images, the fewest" in str(error.value)) == (batch == 5)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_give_the_gradient_of_the_whole_batch_without_batchnorm(parts: int) -> None:
    """Labels on some of the images and mixtures of others, too."""
    torch.manual_seed(0)
    teacher, batch = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.rand(8, 3, 4, 4)
    weights: list[Tensor] = []
    for count in (1, parts):
        torch.manual_seed(1)
        student = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 5))
        training = Training(optimizer="sgd", lr=0.5, batch_size=8, label_weight=0.7, mixup=0.3, weight_decay=0.0)
        student_step = StudentStep(
            task=Classification(num_classes=5, image_size=(4, 4)),
            teacher=teacher,
            student=student,
            training=training,
            optimizer=training.make_optimizer(student),
            pairs={},
            watch=Watch(torch.device("cpu")),
            recovery=Recovery(parts=count),
        )
        figures = student_step.learn(Batch(images=batch, targets=torch.arange(8) % 5), 0)
        weights += [torch.cat([p.detach().flatten() for p in student.parameters()]), figures["loss"]]
    torch.testing.assert_close(weights[0], weights[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights[1], weights[3], rtol=1e-5, atol=1e-6)


def test_a_source_that_does_not_fit_is_told_the_size_that_does(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "dfad"})
    source: Any = recipe.source
    source.batch_size, update, tried = 16, source.update, []

    def limited(student: nn.Module, step: int) -> Any:
        tried.append(source.batch_size)
        if source.batch_size > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return update(student, step)

    source.update = limited
    with pytest.raises(TrainingError, match=r"at step 0, batch_size=16: with batch_size=4 it fits \(tried\)") as error:
        run_recipe(recipe, tmp_path / "run")
    assert error.value.exit_code == 3
    assert tried == [16, 8, 4]


def test_the_size_that_fits_is_found_for_sources_in_a_mixture_in_a_mixture() -> None:
    small, large = Dfad(batch_size=6), Dfad(batch_size=16)
    mixed = Mixed(parts=[Mixed(parts=[Noise(), small]), large])
    tried: list[tuple[int, int]] = []

    def limited(student: nn.Module, step: int) -> dict[str, Any]:
        tried.append((small.batch_size, large.batch_size))
        if max(tried[-1]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {}

    mixed.update = limited  # type: ignore[method-assign]
    assert out_of_memory.update_batches(mixed) == [6, 16]
    assert out_of_memory.fitting(mixed, nn.Identity(), 0) == 4
    assert tried == [(6, 8), (4, 4)]


def test_scoring_goes_on_half_by_half(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"})
    data = recipe.task.open_dataset(labelled(tmp_path / "labelled"))
    network = nn.Conv2d(3, 3, 1)
    whole = evaluate(network, recipe.task, data, device=torch.device("cpu"))
    network.register_forward_pre_hook(at_most(1))
    assert evaluate(network, recipe.task, data, device=torch.device("cpu")) == whole
    network.register_forward_pre_hook(at_most(0))
    with pytest.raises(TrainingError, match="out of memory in scoring, one image at a time"):
        evaluate(network, recipe.task, data, device=torch.device("cpu"))


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory.noticed("a test"):
        raise RuntimeError("the shapes do not match")
