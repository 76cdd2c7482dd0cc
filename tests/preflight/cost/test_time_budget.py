"""time_budget.py: which schedule a time stands for, by hand from costs in the test; what is recorded and resumed."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datafree.cli.main import main
from datafree.config import yaml
from datafree.config.duration import duration_of, seconds_of
from datafree.engine.build_networks import NOTHING_GIVEN, Given, build_networks, prepare
from datafree.engine.student_init import images_of
from datafree.engine.student_step import StudentStep
from datafree.errors import DataError, Interrupted, RecipeError, RunError
from datafree.networks.pruning.fixed_time import FixedTime
from datafree.preflight.cost import start_cost, time_budget
from datafree.preflight.cost.calibration import Calibration
from datafree.preflight.cost.short_time import too_few
from datafree.preflight.cost.time_budget import Costs, Schedule, UpdateCost, planned, recorded, time_for
from datafree.preflight.plan import plan
from datafree.recipe.recipe import Recipe
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources import Noise, Procedural
from datafree.sources.base import Batch, UpdateSize
from recipes import VALID, fault, write
from small_runs import assert_same, everything, recipe_for, stop_after

CPU = torch.device("cpu")


def costs(*sources: tuple[int, int, float, float], step: float = 1.0, fixed: float = 0.0) -> Costs:
    """Of sources as (warmup, update_every, seconds of an early update, of a late one)."""
    return Costs(
        sources=tuple(UpdateCost(warmup=w, update_every=n, early=early, late=late) for w, n, early, late in sources),
        step=step,
        fixed=fixed,
    )


# --- the planner, by hand ---


def test_steps_are_what_fits_beside_what_is_done_once() -> None:
    assert planned(costs(step=2.0, fixed=10.0), 111.0).steps == 50  # (111 - 10) / 2 = 50.5


def test_a_warm_up_of_half_the_time_is_kept_and_a_longer_one_cut_to_half() -> None:
    assert planned(costs((10, 0, 5.0, 0.0)), 100.0) == Schedule(steps=50, rhythm=((10, 0),))
    assert planned(costs((11, 0, 5.0, 0.0)), 100.0) == Schedule(steps=50, rhythm=((10, 0),))
    assert planned(costs((1000, 0, 5.0, 0.0)), 99.0) == Schedule(steps=54, rhythm=((9, 0),))  # 9 x 5 <= 49.5; 99 - 45


def test_updates_of_two_thirds_of_the_time_are_kept_and_slower_ones_stretched() -> None:
    # Every 5 steps an update of 10 s beside 5 s of steps: two thirds. 100 s are 6 x (10 + 5), no step more.
    assert planned(costs((0, 5, 0.0, 10.0)), 100.0) == Schedule(steps=30, rhythm=((0, 5),))
    # Every 2 steps it would be five sixths: stretched to every 5.
    assert planned(costs((0, 2, 0.0, 10.0)), 100.0) == Schedule(steps=30, rhythm=((0, 5),))


def test_the_update_at_step_0_counts() -> None:
    # An update at steps 0, 4 and 8: 3 x 2 + 10 steps are 16 s; step 10 and 11 fit until the next update at 12.
    assert planned(costs((0, 4, 0.0, 2.0)), 16.0).steps == 10
    assert planned(costs((0, 4, 0.0, 2.0)), 18.0).steps == 12
    assert planned(costs((0, 4, 0.0, 2.0)), 20.9).steps == 12  # the 13th has an update: 12 + 6 + 3 = 21
    assert planned(costs((0, 4, 0.0, 2.0)), 21.0).steps == 13


def test_sources_of_a_mixture_are_cut_and_stretched_alike() -> None:
    # Warm-ups of 40 + 20 = 60 s are cut to 50 of 100; updates of 4 + 2 s a step are stretched by 3 to 2 s a step.
    schedule = planned(costs((40, 1, 1.0, 4.0), (10, 2, 2.0, 4.0), (0, 0, 0.0, 0.0)), 100.0)
    assert schedule.rhythm == ((33, 3), (8, 6), (0, 0))
    # What is left, 100 - 33 - 16 = 51 s, are 15 steps, 5 updates of the one and 3 of the other: 15 + 20 + 12 = 47; the
    # 16th has an update of the first, 52.
    assert schedule.steps == 15


def test_of_a_longer_warm_up_one_update_stays_and_one_step_fits() -> None:
    short = costs((100, 10, 4.0, 5.0), step=2.0, fixed=1.0)
    assert planned(short, 12.0) == Schedule(steps=1, rhythm=((1, 10),))  # 1 + 4 + (5 + 2)
    with pytest.raises(RecipeError) as caught:
        planned(short, 11.0)
    (line,) = caught.value.problems
    assert line.startswith("training.time=11s is too short for one step: give 14s or more")  # 12 and a tenth of it


def test_the_time_for_so_many_steps_is_the_least_that_is_planned_for_them() -> None:
    for given in (
        costs(),
        costs((40, 20, 2.0, 1.0)),
        costs((40, 0, 2.0, 1.0), (3, 1, 1.0, 4.0), fixed=30.0, step=0.25),
    ):
        seconds = time_for(given, 1000)
        assert planned(given, seconds).steps >= 1000
        assert planned(given, 0.98 * seconds).steps < 1000


def test_the_time_for_enough_steps_is_found_whatever_rounding_does() -> None:
    draw = random.Random(0)
    for _ in range(200):
        given = costs((40, 20, draw.random(), draw.random()), fixed=50 * draw.random(), step=draw.random())
        assert planned(given, time_for(given, 1000)).steps >= 1000


def test_few_steps_are_a_warning_with_the_time_of_enough() -> None:
    assert too_few("9s", 20, 3700.5) == (
        "9s holds 20 steps, which teach next to nothing: some 1,000 take 1h2m or more here (--time)"
    )
    assert too_few("1s", 1, 20.5).startswith("1s holds 1 step, which teaches next to nothing: some 1,000 take 21s ")


def taken(given: Costs, schedule: Schedule, steps: int) -> float:
    """Seconds of a schedule's warm-up and so many steps, counted one by one."""
    total = given.fixed
    for (warmup, every), source in zip(schedule.rhythm, given.sources, strict=True):
        total += warmup * source.early
        total += source.late * sum(1 for step in range(steps) if every and step % every == 0)
    return total + steps * given.step


def test_no_plan_is_longer_than_its_time_and_none_could_have_a_step_more() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        numbers = torch.rand(8, generator=generator).tolist()
        one = (int(50 * numbers[0]), int(9 * numbers[1]), numbers[2], 5 * numbers[3])
        two = (int(9 * numbers[4]), int(50 * numbers[5]), numbers[6], numbers[2])
        given, seconds = costs(one, two, step=0.1 + numbers[7], fixed=3.0), 20 + 100 * numbers[0]
        schedule = planned(given, seconds)
        assert taken(given, schedule, schedule.steps) <= seconds + 1e-9
        assert taken(given, schedule, schedule.steps + 1) > seconds - 1e-9
        for (warmup, every), source in zip(schedule.rhythm, given.sources, strict=True):
            assert warmup <= source.warmup and (warmup > 0) == (source.warmup > 0)
            assert every >= source.update_every and (every > 0) == (source.update_every > 0)


# --- a run ---


COSTS = costs((6, 5, 0.01, 0.01), step=0.1, fixed=0.0)


def timed(tmp_path: Path, **training: Any) -> Recipe:
    options = {"time": "1s", "device": "cpu", "precision": "fp32", "save_every": 2, **training}
    return recipe_for(tmp_path, {"method": "dafl", "warmup": 6, "update_every": 5}, **options)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are those of the test: nothing is measured."""
    monkeypatch.setattr(time_budget, "measured", lambda *args: COSTS)


def test_the_plan_is_recorded_and_said_and_a_resumed_run_keeps_it(
    tmp_path: Path, known: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with pytest.raises(Interrupted):
        run_recipe(timed(tmp_path), tmp_path / "run", stop=stop_after(8), say=said.append)
    # 1 s less 6 x 0.01: 9 steps of 0.1 and 2 updates of 0.01 are 0.92 of 0.94.
    assert "training.time=1s: 6 warm-up updates and 9 steps are planned" in said
    content = yaml.parse((tmp_path / "run" / "recipe.yaml").read_text(), "recipe.yaml")
    assert (content["training"]["time"], content["training"]["steps"]) == ("1s", 9)
    assert (content["source"]["warmup"], content["source"]["update_every"]) == (6, 5)

    def measured_again(*args: Any) -> Costs:
        raise AssertionError("a resumed run measures nothing")

    monkeypatch.setattr(time_budget, "measured", measured_again)
    run_recipe(timed(tmp_path), tmp_path / "run")
    assert run_recipe(timed(tmp_path), tmp_path / "run").already_finished
    run_recipe(timed(tmp_path, time=None, steps=9), tmp_path / "stated")
    assert_same(everything(tmp_path / "run"), everything(tmp_path / "stated"))
    with pytest.raises(RunError, match=r"training\.time: '2s' here, '1s' in the run"):
        run_recipe(timed(tmp_path, time="2s"), tmp_path / "run")


def test_a_cut_and_stretched_schedule_is_the_runs_own(
    tmp_path: Path, known: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_budget, "measured", lambda *args: costs((6, 5, 0.25, 2.0), step=0.11))
    said: list[str] = []
    recipe = timed(tmp_path, time="4s")
    run_recipe(recipe, tmp_path / "run", say=said.append)
    # 6 of 0.25 are 1.5, within the half; updates of 0.4 a step against 0.11 are stretched by 1.8, to every 10 steps;
    # what is left, 2.5 s, is one update and 4 steps.
    assert "training.time=4s: 6 warm-up updates and 4 steps are planned; an update every 10 steps, not 5" in said
    assert recorded(tmp_path / "run" / "recipe.yaml", recipe.source) == Schedule(
        steps=4, rhythm=((6, 10),), lr_warmup=0
    )
    assert (recipe.source.warmup, recipe.source.update_every) == (6, 5)  # the caller's own is left as it was
    # In 3 s the first step takes 2.11: 0.89 are left for the warm-up, of which 3 updates fit, then 2 steps.
    run_recipe(timed(tmp_path, time="3s"), tmp_path / "short", say=said.append)
    assert "training.time=3s: 3 of 6 warm-up updates and 2 steps are planned; an update every 10 steps, not 5" in said


def test_a_mixture_keeps_its_parts_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"method": "dafl", "warmup": 6, "update_every": 2, "width": 2, "latent": 3, "batch_size": 2}
    source = {"method": "mixed", "parts": [part, {"method": "noise"}]}
    monkeypatch.setattr(time_budget, "measured", lambda *args: costs((6, 2, 0.5, 0.8), (0, 0, 0.0, 0.0), step=0.1))
    recipe = recipe_for(tmp_path, source, time="3s", device="cpu", precision="fp32")
    run_recipe(recipe, tmp_path / "run")
    content = yaml.parse((tmp_path / "run" / "recipe.yaml").read_text(), "recipe.yaml")["source"]
    assert content["warmup"] == content["parts"][0]["warmup"] == 3
    assert content["parts"][0]["update_every"] == 4
    monkeypatch.setattr(time_budget, "measured", None)
    assert run_recipe(recipe, tmp_path / "run").already_finished


def test_the_learning_rate_reaches_its_end_with_the_last_step(
    tmp_path: Path, known: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    lr_at = Training.lr_at

    def noted(training: Training, step: int) -> float:
        rates.append(lr_at(training, step))
        return rates[-1]

    monkeypatch.setattr(Training, "lr_at", noted)
    run_recipe(timed(tmp_path, steps=100_000), tmp_path / "run")
    assert rates == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * step / 9)) for step in range(9)])


def test_the_learning_rate_rises_in_a_tenth_of_the_planned_steps_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_budget, "measured", lambda *args: costs((6, 5, 0.01, 0.0), step=0.1))
    said: list[str] = []
    with pytest.raises(Interrupted):
        run_recipe(timed(tmp_path, time="4s", lr_warmup=50), tmp_path / "run", stop=stop_after(8), say=said.append)
    # 4 s less 6 x 0.01 are 39 steps of 0.1, of which 3 are a tenth at most.
    line = "training.time=4s: 6 warm-up updates and 39 steps are planned; the learning rate rises over 3 steps, not 50"
    assert line in said
    content = yaml.parse((tmp_path / "run" / "recipe.yaml").read_text(), "recipe.yaml")["training"]
    assert (content["steps"], content["lr_warmup"]) == (39, 3)
    monkeypatch.setattr(time_budget, "measured", None)
    with pytest.raises(RunError, match=r"training\.lr_warmup: 2 here, 3 in the run"):
        run_recipe(timed(tmp_path, time="4s", lr_warmup=2), tmp_path / "run")
    run_recipe(timed(tmp_path, time="4s", lr_warmup=50), tmp_path / "run")
    run_recipe(timed(tmp_path, time=None, steps=39, lr_warmup=3), tmp_path / "stated")
    assert_same(everything(tmp_path / "run"), everything(tmp_path / "stated"))


@pytest.mark.parametrize(("stated", "planned_for"), [(0, 0), (2, 2), (4, 4), (5, 4), (50, 4)])
def test_a_rise_that_is_a_tenth_of_the_steps_is_kept_and_nothing_said(stated: int, planned_for: int) -> None:
    training, schedule = Training(time="5s", lr_warmup=stated), Schedule(steps=49, rhythm=((0, 0),))
    assert time_budget._in_steps(training, schedule).lr_warmup == planned_for
    assert ("rises over 4 steps" in time_budget._told(training, Noise(), schedule, 0)) == (stated > 4)


def test_a_run_of_an_earlier_version_keeps_its_rise(tmp_path: Path, known: None) -> None:
    recipe = timed(tmp_path, lr_warmup=50)
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "run", stop=stop_after(8))
    file = tmp_path / "run" / "recipe.yaml"
    content = yaml.parse(file.read_text(), "recipe.yaml")
    assert isinstance(recipe.training, Training) and content["training"]["lr_warmup"] == 0  # a tenth of 9 is none
    file.write_text(file.read_text().replace("lr_warmup: 0", "lr_warmup: 50"))
    _, training, _ = time_budget.with_time(recipe, recipe.training, tmp_path / "run", NOTHING_GIVEN, CPU, torch.float32)
    assert (training.steps, training.lr_warmup) == (9, 50)


def test_a_measured_run_has_steps_and_the_given_networks_are_not_touched(tmp_path: Path) -> None:
    recipe = timed(tmp_path, time="60s")
    student = prepare(recipe.student, recipe.task, "student", CPU, torch.float32).network
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert isinstance(recipe.training, Training)
    found = time_budget.measured(recipe, recipe.training, Given(student=student), CPU, torch.float32, 60.0)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert found.step > 0 and found.fixed > 0
    (source,) = found.sources
    assert (source.warmup, source.update_every) == (6, 5)
    assert source.early > 0 and source.late > 0
    schedule, (line,) = time_budget.found(recipe, recipe.training, NOTHING_GIVEN, CPU, torch.float32)
    assert schedule.steps > 0
    planned_line, _, memory = line.partition("; ")
    assert planned_line == f"training.time=60s: 6 warm-up updates and {schedule.steps:,} steps are planned"
    assert memory.endswith("B beside Python and torch")


def test_the_memory_that_is_told_is_of_the_banks_that_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 updates before 10 steps and 2 beside these, or 1 alone: the images of 4 updates more, 8 bits a channel."""
    source = {"method": "inversion", "warmup": 500, "update_every": 5}
    recipe = recipe_for(tmp_path, source, time="4s", device="cpu", precision="fp32")
    made = recipe.source.update_size()
    assert made is not None and isinstance(recipe.training, Training)
    costs = time_budget.measured(recipe, recipe.training, NOTHING_GIVEN, CPU, torch.float32, 4.0)
    told: list[int] = []
    monkeypatch.setattr(time_budget, "measured", lambda *given: costs)
    monkeypatch.setattr(time_budget, "_told", lambda *given: told.append(given[-1]))
    for rhythm in ((3, 5), (1, 0)):
        schedule = Schedule(steps=10, rhythm=(rhythm,))
        monkeypatch.setattr(time_budget, "planned", lambda *given, schedule=schedule: schedule)
        monkeypatch.setattr(time_budget, "time_for", lambda *given: 60.0)
        time_budget.found(recipe, recipe.training, NOTHING_GIVEN, CPU, torch.float32)
    assert told[0] - told[1] == 4 * made.images * 3 * math.prod(recipe.task.image_size)


@pytest.mark.parametrize(("whole", "update", "step"), [(0.0, 640.0, 18.0), (639.0, 640.0, 3.0), (640.0, 166.0, 3.0)])
def test_what_is_cheap_is_timed_as_large_as_it_is(
    whole: float, update: float, step: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update takes 6 s and 1 s an image, a step 1.875 s and 1/16 s an image.

    Two images are timed: of an update 8 s, for 160 images 640 s in proportion; of a step 2 s, for 18 images 18 s.
    """
    now = [0.0]

    def updated(source: Procedural, student: Any, step: int) -> dict[str, Any]:
        now[0] += 6 + source.batch_size
        return {}

    def learnt(self: StudentStep, batch: Batch, step: int) -> dict[str, Any]:
        now[0] += 1.875 + len(batch.images) / 16
        return {}

    monkeypatch.setattr(Procedural, "update", updated)
    monkeypatch.setattr(StudentStep, "learn", learnt)
    recipe = recipe_for(tmp_path, {"method": "procedural"}, batch_size=8)
    source = Procedural(batch_size=160, surplus=1, warmup=1, update_every=1)
    networks = build_networks(replace(recipe, source=source), CPU, torch.float32)
    calibrated = Calibration(
        task=recipe.task, teacher=networks.teacher, student=networks.student, source=source,
        training=replace(recipe.training, batch_size=18), dtype=torch.float32, most=2, budget=0.0,
        clock=lambda: now[0], whole=whole,
    )  # fmt: skip
    (part,) = calibrated.small.updated_sources()
    assert calibrated.update(part, source, -1).seconds == pytest.approx(update)
    assert part.update_size() == UpdateSize(images=2)
    assert calibrated.step().each.seconds == pytest.approx(step)


def test_a_start_from_the_teacher_is_counted_from_one_on_few_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def started(teacher: Any, student: Any, source: Any, task: Any, batch: int, count: int, fixed: FixedTime) -> None:
        assert (count, fixed.share) == (51, 51 / 512)
        with fixed.counted():
            now[0] += 5
        with fixed.counted(more=3):
            now[0] += 2
        now[0] += count / 10

    monkeypatch.setattr(start_cost, "start_student", started)
    task = timed(tmp_path).task
    calibrated: Any = SimpleNamespace(
        clock=lambda: now[0], student=torch.nn.Linear(1, 1), teacher=None, small=None, task=task, timed=3
    )
    assert images_of(task) == 512
    assert start_cost.seconds_of_start(calibrated) == pytest.approx(5 + 3 * 2 + 51.2)


def test_a_run_that_starts_from_its_teacher_is_planned(tmp_path: Path) -> None:
    recipe = timed(tmp_path, time="60s")
    recipe = replace(recipe, student=replace(recipe.student, init="teacher"))
    schedule, _ = time_budget.found(recipe, recipe.training, NOTHING_GIVEN, CPU, torch.float32)
    assert schedule.steps > 0


def test_a_time_too_short_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path, to_content(tmp_path))
    out = tmp_path / "run"
    monkeypatch.setattr(time_budget, "measured", lambda *args: costs(step=2.0, fixed=10.0))
    monkeypatch.setattr("sys.argv", ["datafree", "distill", recipe, "training.time=5s", "--out", str(out)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "training.time=5s is too short for one step: give 14s or more" in error
    assert not out.exists()


def to_content(tmp_path: Path) -> dict[str, Any]:
    from datafree.recipe.recipe import dump

    return dump(timed(tmp_path))


def test_a_plan_is_of_the_schedule(tmp_path: Path, known: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.preflight.cost.estimate.PASS", 0.0)
    said = plan(timed(tmp_path))
    assert "training.time=1s: 6 warm-up updates and 9 steps are planned" in said.notes
    assert {row.what: row.often for row in said.work}["the student"] == 9


@pytest.mark.parametrize("text", ["", "{", "training: 3", "training: {steps: 3}", "source: {method: noise}"])
def test_a_damaged_record_is_for_whoever_opens_the_run_to_say(tmp_path: Path, known: None, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    recipe = timed(tmp_path)
    assert recorded(tmp_path / "run" / "recipe.yaml", recipe.source) is None
    with pytest.raises(RunError, match=r"another recipe|is damaged"):
        run_recipe(recipe, tmp_path / "run")


# --- what a time is ---


@pytest.mark.parametrize("value", [90, 1.5, "", "9", "0s", "-3m", "1.5h", True, [1]])
def test_what_is_no_time_is_refused(tmp_path: Path, value: object) -> None:
    text = fault(tmp_path, {**VALID, "training": {"time": value}})
    assert text.startswith("training.time: ")
    assert "write it as 90s, 9m or 1h30m" in text


def test_also_from_python() -> None:
    with pytest.raises(DataError, match="time is 'soon'; write it as 90s, 9m or 1h30m"):
        Training(time="soon")


@pytest.mark.parametrize(("seconds", "text"), [(1, "1s"), (0.2, "1s"), (90, "1m30s"), (3600, "1h"), (7321.5, "2h2m2s")])
def test_durations_are_written_as_they_are_read(seconds: float, text: str) -> None:
    assert duration_of(seconds) == text
    assert seconds_of(text) == max(1, -int(-seconds // 1))
