"""`training.hint_weight`: a student's maps beside the channels of the teacher that it started from."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.engine.build_networks import with_source
from datafree.engine.loop import distill
from datafree.errors import Interrupted
from datafree.networks.features import watched
from datafree.networks.normalized import Normalized, bare
from datafree.networks.pruning.hints import Hint, hint_loss
from datafree.networks.pruning.start import StartOptions, start_from_teacher
from datafree.networks.resnet import resnet
from datafree.recipe.recipe import Recipe
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources.noise import Noise
from datafree.storage.run_directory import Run
from datafree.tasks.classification import Classification
from recipes import VALID, changed, fault
from small_runs import assert_same, everything, recipe_for, stop_after

CPU = torch.device("cpu")
TASK = Classification(num_classes=3, image_size=(16, 16), temperature=2.0)
COPIED = StartOptions(refit=None, hints=True)


def network(width: int, seed: int = 0, depth: int = 8) -> Normalized:
    torch.manual_seed(seed)
    made = resnet(3, depth=depth, width=width)
    for _ in range(3):
        made(torch.rand(8, 3, 16, 16))
    return Normalized(made).eval()


def images(n: int = 8) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def maps_of(teacher: nn.Module, student: nn.Module, hints: list[Hint], images: Tensor) -> tuple[Any, Any]:
    """Of both networks, as they are: layer -> map."""
    with torch.no_grad(), watched(bare(student), [h.ours for h in hints]) as ours:
        student(images)
    with torch.no_grad(), watched(bare(teacher), [h.theirs for h in hints]) as theirs:
        teacher(images)
    return ours, theirs


def test_the_distance_is_the_mean_square_over_the_variance_at_the_channels_that_are_known() -> None:
    ours = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]], [[50.0, 60.0]]]])  # (1, 3, 1, 2)
    theirs = torch.tensor([[[[9.0, 9.0]], [[1.0, 0.0]], [[7.0, 7.0]], [[3.0, 1.0]]]])  # (1, 4, 1, 2)
    hint = Hint(
        ours="a", theirs="b", known=torch.tensor([0, 1]), channels=torch.tensor([1, 3]), dim=1, variance=2.0
    )  # fmt: skip
    assert float(hint.distance(ours, theirs)) == pytest.approx((0 + 4 + 0 + 9) / 4 / 2)
    rows = Hint(ours="c", theirs="d", known=None, channels=torch.tensor([2, 0]), dim=-1, variance=0.5)
    tokens = (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 100.0, 4.0]]))
    assert float(rows.distance(*tokens)) == pytest.approx((9 + 1) / 2 / 0.5)
    both = hint_loss({"a": ours, "c": tokens[0]}, {"b": theirs, "d": tokens[1]}, [hint, rows])
    assert float(both) == pytest.approx((13 / 8 + 10) / 2)


def test_a_copy_of_the_teacher_has_nothing_to_learn_from_its_hints() -> None:
    teacher, student = network(8), network(8, seed=1)
    hints = start_from_teacher(teacher, student, images(), COPIED).hints
    ours, theirs = maps_of(teacher, student, hints, images())
    assert len(hints) == 8  # seven convolutions and the classifier
    assert float(hint_loss(ours, theirs, hints)) == 0


def test_a_hint_is_of_the_channels_that_were_copied_and_over_their_variance() -> None:
    """Of the first layer, whose inputs are the same: its maps are the teacher's channels."""
    teacher, student = network(8), network(4, seed=1)
    hints = start_from_teacher(teacher, student, images(), COPIED).hints
    ours, theirs = maps_of(teacher, student, hints, images())
    first = next(hint for hint in hints if hint.ours in ("bn1", "conv1"))
    assert torch.equal(ours[first.ours], theirs[first.theirs][:, first.channels])
    assert len(first.channels.unique()) == 4
    spread = theirs[first.theirs].transpose(0, 1).flatten(1)[first.channels].var(1, correction=0).mean()
    assert first.variance == pytest.approx(float(spread))
    assert float(hint_loss(ours, theirs, hints)) > 0.01  # deeper layers have less to go by


def test_a_block_that_stands_for_several_is_compared_with_the_last_of_them() -> None:
    teacher, student = network(8, depth=14), network(8, seed=1, depth=8)
    hints = start_from_teacher(teacher, student, images(), COPIED).hints
    stages = [
        pair
        for stage in ("layer1", "layer2", "layer3")
        for pair in ((f"{stage}.0.bn1", f"{stage}.0.bn1"), (f"{stage}.0", f"{stage}.1"))
    ]
    assert sorted((hint.ours, hint.theirs) for hint in hints) == sorted([("bn1", "bn1"), *stages, ("linear", "linear")])
    ours, theirs = maps_of(teacher, student, hints, images())
    assert all(
        float(hint.distance(ours[hint.ours], theirs[hint.theirs])) > 0 for hint in hints if hint.ours.endswith(".0")
    )


def test_hints_pull_the_students_maps_towards_its_teachers(tmp_path: Path) -> None:
    distances = {}
    for weight in (0.0, 20.0):
        teacher, student = network(8), network(4, seed=1)
        run = Run(tmp_path / str(weight), {})
        training = Training(steps=30, batch_size=16, lr=1e-2, hint_weight=weight, device="cpu", log_every=1)
        distill(task=TASK, teacher=teacher, student=student, source=Noise(), training=training, run=run, init="teacher")
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        run.close()
        assert all(("hint" in line) == (weight > 0) for line in lines if "loss" in line)
        hints = start_from_teacher(teacher, copy.deepcopy(student), images(), COPIED).hints
        distances[weight] = float(hint_loss(*maps_of(teacher, student.eval(), hints, images(32)), hints))
    assert distances[20.0] < 0.8 * distances[0.0]


def test_the_loss_has_the_hints_with_their_weight(tmp_path: Path) -> None:
    """A step so small that the student is afterwards what it was before: all of it can be calculated again."""
    teacher, student = network(8), network(4, seed=1)
    run = Run(tmp_path / "run", {})
    training = Training(
        steps=1, batch_size=8, lr=1e-30, weight_decay=0, hint_weight=3.0, device="cpu", precision="fp32", log_every=1
    )
    source = Noise()
    seen: list[Tensor] = []
    handle = student.register_forward_pre_hook(lambda module, args: seen.append(args[0]) if module.training else None)
    distill(task=TASK, teacher=teacher, student=student, source=source, training=training, run=run, init="teacher")
    handle.remove()
    line = next(
        line for line in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    )
    state = run.last_state()
    run.close()
    assert state is not None
    hints = [Hint(**hint) for hint in state["hints"]]
    ours, theirs = maps_of(teacher, student.train(), hints, seen[0])
    with torch.no_grad():
        answers = TASK.distill_loss(student(seen[0]), teacher(seen[0]))
    hint = hint_loss(ours, theirs, hints)
    assert line["hint"] == pytest.approx(float(hint), rel=1e-5)
    assert line["loss"] == pytest.approx(float(answers + 3.0 * hint), rel=1e-5)


def hinted(tmp_path: Path, **training: Any) -> Recipe:
    recipe = recipe_for(tmp_path, {"method": "noise"}, hint_weight=5.0, **training)
    return replace(recipe, student=replace(recipe.student, init="teacher"))


def test_a_stopped_run_with_hints_resumes_to_the_same_bits(tmp_path: Path) -> None:
    run_recipe(hinted(tmp_path), tmp_path / "whole")
    for pieces in (1, 3):
        with pytest.raises(Interrupted):
            run_recipe(hinted(tmp_path), tmp_path / "parts", stop=stop_after(pieces))
    run_recipe(hinted(tmp_path), tmp_path / "parts")
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_a_student_that_starts_at_random_has_no_hints(tmp_path: Path) -> None:
    told = changed(student={**VALID["student"], "init": "random"}, training={**VALID["training"], "hint_weight": 2})
    assert fault(tmp_path, told) == (
        "training.hint_weight: is 2, but student.init is random; a hint takes a start from the teacher"
    )
    recipe = recipe_for(tmp_path, {"method": "noise"}, hint_weight=5.0)
    assert recipe.student.init == "auto"
    chosen, _ = with_source(recipe, CPU, torch.float32)
    assert (chosen.student.init, chosen.training.hint_weight) == ("random", 0.0)
