"""Numbers that are not finite: found within the step, never written, gone back from at lower rates, code 3 at last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import injected
import pytest
import torch
from torch import nn

from datafree.engine.build_networks import prepare
from datafree.engine.nonfinite import NotFinite, Watch
from datafree.errors import Interrupted, TrainingError
from datafree.networks.unet import unet
from datafree.ops import modes
from datafree.run import run_recipe
from datafree.sources.dfad import Dfad
from datafree.sources.noise import Noise
from datafree.storage import checkpoint
from recipes import sources
from small_runs import SMALL, assert_same, everything, recipe_for, stop_after
from thorough import some

# What is spoilt in the student's half of step 7, and what is seen of it: a generator's weights in its next images.
PLACES: dict[str, tuple[injected.Spoil, str]] = {
    "generator": (injected.in_generator, "the images"),
    "student": (injected.in_student, "the loss"),
    "student's average": (injected.in_students_average, "the student's running averages"),
    "generator's average": (injected.in_generators_average, "the source's generator"),
    "teacher's answer": (injected.in_teachers_answer, "the teacher's answers"),
    "gradient": (injected.in_gradient, "the student's gradients"),
}


class Said:
    """What a run has said about numbers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        if "not finite" in line:
            self.lines.append(line)


@pytest.mark.parametrize("place", some(PLACES, "student's average"))
def test_a_number_gone_bad_is_found_within_its_step_and_the_run_goes_back(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, what = PLACES[place]
    recipe = recipe_for(tmp_path, {"method": "dfad"}, log_every=50, save_every=5)  # nothing is written at step 7
    injected.at_step(monkeypatch, recipe.source, 7, spoil, times=1)
    said = Said()
    outcome = run_recipe(recipe, tmp_path / "run", say=said)
    step = 8 if place == "generator" else 7
    seen = f"warning: not finite at step {step}: {what}; rolled back to step 5, learning rates times 0.5"
    assert said.lines[0].startswith(seen)
    assert said.lines[0].removeprefix("warning: ") in outcome.notes
    assert injected.bad_numbers(tmp_path / "run") == []
    assert checkpoint.read(tmp_path / "run" / "state" / "state.pt")["recovery"]["pace"] == 0.5


@pytest.mark.parametrize("place", some(["generator", "gradient"], "gradient"))
def test_a_fault_that_comes_again_ends_the_run_with_code_3_and_the_last_good_state(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tmp_path, {"method": "dfad"}, max_rollbacks=2)
    injected.at_step(monkeypatch, recipe.source, 7, PLACES[place][0])
    said = Said()
    with pytest.raises(TrainingError, match="after 2 rollbacks, each at half the learning rates; the") as error:
        run_recipe(recipe, tmp_path / "run", say=said)
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)
    assert [line.partition("times ")[2][:4] for line in said.lines] == ["0.5 ", "0.25"]
    assert injected.bad_numbers(tmp_path / "run") == []
    state = checkpoint.read(tmp_path / "run" / "state" / "state.pt")
    assert (state["step"], state["recovery"]["rollbacks"]) == (5, 2)  # a stopped run does not forget them
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_a_teacher_that_answers_no_numbers_to_a_sources_images_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tmp_path, {"method": "dfad"}, max_rollbacks=1)
    update = Dfad.update

    def spoilt(source: Dfad, student: nn.Module, step: int) -> dict[str, torch.Tensor]:
        mend = injected.spoil_answers(source._context.teacher) if step == 5 else lambda: None
        try:
            return update(source, student, step)
        finally:
            mend()

    monkeypatch.setattr(Dfad, "update", spoilt)
    with pytest.raises(TrainingError, match="not finite at step 5: the teacher's answers after") as error:
        run_recipe(recipe, tmp_path / "run")
    assert str(error.value).endswith("check the teacher's weights and code, or set training.precision=fp32")


def test_an_optimisers_moment_gone_bad_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight, loss or gradient shows it: it is seen when the state is to be written."""
    recipe = recipe_for(tmp_path, {"method": "noise"}, save_every=5)
    injected.at_step(monkeypatch, recipe.source, 7, injected.in_optimizer, times=1)
    said = Said()
    run_recipe(recipe, tmp_path / "run", say=said)
    assert "the state's optimizer/state/" in said.lines[0]
    assert injected.bad_numbers(tmp_path / "run") == []


@pytest.mark.thorough
def test_an_average_of_the_source_gone_bad_is_found(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "cgdd"}, save_every=4)
    recipe.source.update_every = 1
    source, update, spoilt = recipe.source, recipe.source.update, []

    def spoil(student: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
        if step == 6 and not spoilt:
            spoilt.append(step)
            next(iter(source._match._past.values()))[0][0] = torch.nan
        return update(student, step)

    source.update = spoil  # type: ignore[method-assign]
    said = Said()
    run_recipe(recipe, tmp_path / "run", say=said)
    assert said.lines[0].startswith("warning: not finite at step 6: the source's bn; rolled back to step 4")
    assert injected.bad_numbers(tmp_path / "run") == []


@pytest.mark.thorough
def test_a_run_that_goes_back_without_a_lower_rate_ends_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks, optimisers, averages, logs and random states all are those of the state it goes back to."""
    monkeypatch.setattr("datafree.recipe.training.Training.lr_at", lambda self, step: 1e-3)
    run_recipe(recipe_for(tmp_path, {"method": "dfad"}), tmp_path / "unbroken")
    recipe = recipe_for(tmp_path, {"method": "dfad"})
    injected.at_step(monkeypatch, recipe.source, 8, injected.in_student, times=1)
    monkeypatch.setattr("datafree.engine.recovery.Recovery.pace", property(lambda self: 1.0, lambda self, value: None))
    run_recipe(recipe, tmp_path / "faulty")
    unbroken, faulty = everything(tmp_path / "unbroken"), everything(tmp_path / "faulty")
    for part in ("student", "metrics", "samples"):
        assert_same(unbroken[part], faulty[part], part)
    assert_same(unbroken["state"]["source"], faulty["state"]["source"])
    assert_same(unbroken["state"]["random"], faulty["state"]["random"])


def test_a_step_that_went_wrong_can_be_repeated_from_what_was_kept(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, optimizer="sgd", lr=1e30, max_rollbacks=0, select="last")
    with pytest.raises(TrainingError, match=r"\(its inputs are saved in .*faults/0000..\.pt\)"):
        run_recipe(recipe, tmp_path / "run")
    (file,) = (tmp_path / "run" / "faults").iterdir()
    kept = checkpoint.read(file)
    assert "not finite at step" in kept["what"]

    source = Noise()
    source.attach(recipe.training.source_context(recipe.task, unet(3), torch.device("cpu"), torch.float32, print))
    modes.set_random_state(kept["random"])
    assert torch.equal(source.sample(3).images, kept["images"])  # the very images of that step

    student = recipe.student.wrap(unet(3, **SMALL), torch.float32).train()
    student.load_state_dict(kept["student"])
    loss = recipe.task.distill_loss(student(kept["images"]), kept["answers"][0])
    torch.autograd.backward(loss)
    gradients = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert not (loss.isfinite() and gradients.norm().isfinite())


@pytest.mark.thorough
def test_a_run_stopped_between_two_faults_remembers_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, max_rollbacks=1)
    injected.at_step(monkeypatch, recipe.source, 7, injected.in_student)
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "run", stop=stop_after(8))  # step 7 fails at the eighth call; then it stops
    with pytest.raises(TrainingError, match="after 1 rollback, each"):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}, max_rollbacks=1), tmp_path / "run")


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["degan", "dfad", "zskt", "dafl", "cgdd", "fast"])
def test_lr_scale_is_in_every_rate_of_a_source(method: str, tmp_path: Path, photos: Callable[..., Path]) -> None:
    """At half the scale the first step of Adam is half as long, at none there is no step."""
    moved = {}
    for scale in (1.0, 0.5, 0.0):
        recipe = recipe_for(tmp_path, sources(photos(10, name=str(scale)))[method])
        device, dtype = torch.device("cpu"), torch.float32
        teacher = prepare(recipe.teacher, recipe.task, "teacher", device, dtype)
        student = prepare(recipe.student, recipe.task, "student", device, dtype)
        modes.seed_everything(0)
        context = recipe.training.source_context(
            recipe.task, teacher, device, dtype, print, lr_scale=lambda scale=scale: scale
        )
        with modes.frozen(teacher):
            recipe.source.attach(context)
            (generator,) = recipe.source.artefacts().values()
            before = [parameter.detach().clone() for parameter in generator.parameters()]
            recipe.source.update(student, 0)
        steps = [(now - then).abs().max() for now, then in zip(generator.parameters(), before, strict=True)]
        moved[scale] = float(max(steps).detach())
    assert moved[0.0] == 0.0
    assert 0 < moved[0.5] == pytest.approx(moved[1.0] / 2, rel=0.05)


def test_a_watch_names_the_first_thing_that_is_bad() -> None:
    watch = Watch(torch.device("cpu"))
    watch.begin(3)
    watch.keep(images=torch.zeros(1))
    watch.see("the images", [torch.ones(2), torch.arange(3)])
    watch.look()
    watch.see("the loss", [torch.tensor(torch.nan)])
    watch.see("the weights", [torch.tensor(torch.inf)])
    with pytest.raises(NotFinite, match="not finite at step 3: the loss") as error:
        watch.look()
    assert error.value.evidence.keys() == {"step", "random", "images"}
    watch.look(wait=True)  # it was told once


@pytest.mark.gpu
def test_looking_within_a_step_does_not_make_the_accelerator_wait() -> None:
    """Torch raises on every wait of the host; what is bad is told when it has arrived, or is waited for."""
    device = torch.device("cuda")
    network = unet(3).to(device)
    watch = Watch(device)
    watch.begin(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            watch.see("the weights", [*network.parameters(), *network.buffers()])
            watch.look()
        watch.see("the loss", [torch.full((), torch.nan, device=device)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(NotFinite, match="the loss"):
        watch.look(wait=True)
