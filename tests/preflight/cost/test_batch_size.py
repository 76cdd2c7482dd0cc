"""batch_size.py, free_memory.py: which batch size `auto` is, where the test says what is free; what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datafree.engine.build_networks import NOTHING_GIVEN, Given, prepare
from datafree.errors import DataError, Interrupted, RecipeError, RunError
from datafree.ops import modes
from datafree.preflight.cost import batch_size
from datafree.preflight.cost.activation_memory import watched_memory
from datafree.preflight.cost.batch_size import counted, found, recorded
from datafree.preflight.cost.free_memory import free_memory
from datafree.preflight.plan import plan
from datafree.recipe.recipe import Recipe, dump
from datafree.recipe.training import AutoTraining, Training
from datafree.run import run_recipe
from datafree.synthesis.synthesize import synthesize
from recipes import fault
from small_runs import assert_same, everything, recipe_for, stop_after

CPU = torch.device("cpu")
GB = 10**9


def auto(tmp_path: Path, **training: Any) -> Recipe:
    options = {"batch_size": "auto", "device": "cpu", "precision": "fp32", "steps": 4, "save_every": 2, **training}
    return recipe_for(tmp_path, {"method": "noise"}, **options)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    """Sets what is free."""

    def set_to(count: float | None) -> None:
        monkeypatch.setattr(batch_size, "free_memory", lambda device: count)

    set_to(1e6)
    return set_to


# --- the number ---


def test_the_largest_power_of_two_that_fits() -> None:
    assert counted(1 * GB, 0.5 * GB, 9.0 * GB)[0] == 16  # 1 + 16 / 2 = 9
    assert counted(1 * GB, 0.5 * GB, 8.9 * GB)[0] == 8
    assert counted(1 * GB, 0.5 * GB, 2.0 * GB)[0] == 2
    assert counted(0, 1, 1e12)[0] == 256


def test_the_line_says_what_it_takes_and_what_twice_as_many_would() -> None:
    (line,) = counted(1 * GB, 0.5 * GB, 9.5 * GB)[1]
    assert line == (
        "training.batch_size: auto is 16: a step needs about 9.0 GB of the 9.5 GB that it may take; 32 need 17 GB"
    )
    assert counted(0, 1, 1e12)[1][0].endswith("(256 at most)")


def test_no_room_at_all_is_one_line() -> None:
    with pytest.raises(RecipeError, match=r"auto, but 2 images need about 2\.0 GB, and only 1\.5 GB may be") as caught:
        counted(1 * GB, 0.5 * GB, 1.5 * GB)
    assert len(caught.value.problems) == 1


def test_the_choice_is_what_the_bytes_of_a_step_say(tmp_path: Path, free: Callable[[float], None]) -> None:
    """By hand: kept bytes of the same step written out, gradients and two moments of Adam, of half of what is free."""
    recipe = auto(tmp_path)
    networks = {
        what: prepare(spec, recipe.task, what, CPU, torch.float32)
        for what, spec in (("teacher", recipe.teacher), ("student", recipe.student))
    }
    student = networks["student"].train()

    def kept(images: int) -> int:
        x = torch.rand(images, 3, 32, 32)
        with torch.no_grad(), modes.frozen(networks["teacher"]):
            answers = networks["teacher"](x)
        with watched_memory(list(networks.values())) as memory:
            recipe.task.distill_loss(student(x), answers).backward()
        return memory.peak

    weights = 3 * sum(v.numel() * v.element_size() for v in (*student.parameters(), *student.buffers()))
    for images in (4, 16, 64):
        free(2.02 * (weights + kept(images)))
        assert found(recipe, NOTHING_GIVEN, CPU, torch.float32)[0] == images
        free(1.98 * (weights + kept(images)))
        assert found(recipe, NOTHING_GIVEN, CPU, torch.float32)[0] == images // 2


def test_a_full_bank_is_left_room_for(tmp_path: Path, free: Callable[[float], None]) -> None:
    def of(bank: int) -> int:
        source = {"method": "inversion", "warmup": 400, "batch_size": 100, "bank_size": bank}
        options = {"batch_size": "auto", "device": "cpu", "precision": "fp32"}
        return found(recipe_for(tmp_path, {**source}, **options), NOTHING_GIVEN, CPU, torch.float32)[0]

    free(100e6)
    small = of(10)
    assert small == 256
    free(2 * 40_000 * 3 * 32 * 32)  # half of it is the bank of 40,000 images: nothing is left
    assert of(10) == 256
    assert recipe_for(tmp_path, {"method": "inversion"}).source.bank_size == 64  # what `recipe_for` makes of it


def test_on_a_gpu_sizes_are_tried_until_memory_runs_out() -> None:
    tried = []

    def taken(images: int) -> int:
        tried.append(images)
        if images > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images * GB // 10

    size, (line,) = batch_size._tried(taken, 4.0 * GB)
    assert (size, tried) == (32, [2, 4, 8, 16, 32, 64])
    assert line.endswith("a step took 3.2 GB of the 4.0 GB that it may take, a larger one does not fit")


def test_on_a_gpu_what_is_taken_leaves_the_headroom() -> None:
    assert batch_size._tried(lambda images: images * GB // 10, 2.0 * GB)[0] == 16
    assert batch_size._tried(lambda images: 1, GB)[0] == 256
    with pytest.raises(RecipeError, match="a step with 2 images does not fit"):
        batch_size._tried(lambda images: 2 * GB, GB)


def test_on_a_gpu_what_smaller_tries_have_left_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes one block, for which none of a smaller step's is large enough."""
    reserved = peak = 0

    def step(images: int) -> None:
        nonlocal reserved, peak
        kept = max(blocks, default=0)
        if images > kept:
            blocks.append(images)
            reserved += images * GB
        peak = max(peak, reserved)

    def empty() -> None:
        nonlocal reserved
        blocks.clear()
        reserved = 0

    def reset(device: torch.device) -> None:
        nonlocal peak
        peak = reserved

    blocks: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peak)
    monkeypatch.setattr(batch_size, "banks_of", lambda *given: 0)

    def taken(images: int) -> int:
        stub: Any = SimpleNamespace(
            kept=lambda: step(images), source=None, training=None, task=SimpleNamespace(image_size=(8, 8))
        )
        return batch_size._taken(stub, torch.device("cuda"))

    assert batch_size._tried(taken, 40.0 * GB)[0] == 32  # of 2, 4, 8, 16 and 32 there would be 62


def test_another_fault_of_a_try_is_not_taken_for_memory() -> None:
    def taken(images: int) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        batch_size._tried(taken, GB)


# --- recorded ---


def test_the_number_is_recorded_and_said_and_kept_when_the_run_goes_on(
    tmp_path: Path, free: Callable[[float | None], None]
) -> None:
    said: list[str] = []
    with pytest.raises(Interrupted):
        run_recipe(auto(tmp_path), tmp_path / "run", stop=stop_after(2), say=said.append)
    (line,) = [line for line in said if "auto" in line]
    size = recorded(tmp_path / "run" / "recipe.yaml")
    assert size is not None
    assert line.startswith(f"training.batch_size: auto is {size}: ")
    free(1e12)  # a search would find another number now; none is made
    run_recipe(auto(tmp_path), tmp_path / "run")
    assert recorded(tmp_path / "run" / "recipe.yaml") == size
    run_recipe(auto(tmp_path, batch_size=size), tmp_path / "stated")
    assert_same(everything(tmp_path / "run"), everything(tmp_path / "stated"))
    free(None)
    assert run_recipe(auto(tmp_path), tmp_path / "run").already_finished


def test_a_run_of_another_number_is_refused_as_ever(tmp_path: Path, free: Callable[[float], None]) -> None:
    run_recipe(auto(tmp_path, batch_size=3), tmp_path / "run")
    assert run_recipe(auto(tmp_path), tmp_path / "run").already_finished
    with pytest.raises(RunError, match=r"training\.batch_size: 5 here, 3 in the run"):
        run_recipe(auto(tmp_path, batch_size=5), tmp_path / "run")


@pytest.mark.parametrize(
    "text", ["", "{", "training: 3", "training: {batch_size: many}", "training: {batch_size: true}"]
)
def test_a_damaged_record_is_for_whoever_opens_the_run_to_say(
    tmp_path: Path, free: Callable[[float], None], text: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    assert recorded(tmp_path / "run" / "recipe.yaml") is None
    with pytest.raises(RunError, match=r"another recipe|is damaged"):
        run_recipe(auto(tmp_path), tmp_path / "run")


def test_a_student_that_was_given_is_searched_with_a_copy(tmp_path: Path, free: Callable[[float], None]) -> None:
    recipe = auto(tmp_path)
    student = prepare(recipe.student, recipe.task, "student", CPU, torch.float32).network
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found(recipe, Given(student=student), CPU, torch.float32)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())


# --- mistakes, and those that ask ---


def test_wrong_values_are_one_line(tmp_path: Path) -> None:
    from recipes import VALID

    for value, said in (("big", "auto"), (0, "1 or more"), (2.5, "whole number"), (True, "whole number")):
        text = fault(tmp_path, {**VALID, "training": {"batch_size": value}})
        assert text.startswith("training.batch_size: ")
        assert said in text
    for word in ("big", "auto"):
        with pytest.raises(ValueError, match=rf"batch_size is '{word}'; give a number, or \{{'batch_size': 'auto', "):
            Training(batch_size=word)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch_size is 0; it must be 1 or more"):
        Training(batch_size=0)


def test_a_recipe_that_says_auto_has_no_number_until_it_is_found(tmp_path: Path) -> None:
    asked, stated = auto(tmp_path).training, auto(tmp_path, batch_size=5).training
    assert isinstance(asked, AutoTraining) and isinstance(stated, Training)
    assert asked.with_batch_size(5) == stated
    assert stated.with_batch_size(7).batch_size == 7
    assert dump(auto(tmp_path))["training"] == {**dump(auto(tmp_path, batch_size=5))["training"], "batch_size": "auto"}


def test_where_nothing_says_what_is_free_it_asks_for_a_number(
    tmp_path: Path, free: Callable[[float | None], None]
) -> None:
    free(None)
    with pytest.raises(RecipeError, match="nothing says how much memory is free on cpu; give a number"):
        run_recipe(auto(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_data_set_takes_no_auto(tmp_path: Path) -> None:
    for act in (lambda: synthesize(auto(tmp_path), tmp_path / "set", 10), lambda: plan(auto(tmp_path), images=10)):
        with pytest.raises(RecipeError, match="auto is for a student that learns, and none does here; give a number"):
            act()
    assert not (tmp_path / "set").exists()


def test_a_plan_shows_the_number(
    tmp_path: Path, free: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datafree.preflight.cost.estimate.PASS", 0.0)
    said = plan(auto(tmp_path))
    assert said.batch_size == found(auto(tmp_path), NOTHING_GIVEN, CPU, torch.float32)[0]
    assert any(note.startswith(f"training.batch_size: auto is {said.batch_size}: ") for note in said.notes)


# --- what is free ---


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


MEMINFO = "MemTotal:  8000 kB\nMemFree: 100 kB\nMemAvailable:   4000 kB\n"


def test_free_is_what_the_system_has_available(tmp_path: Path) -> None:
    assert free_memory(CPU, machine(tmp_path, proc__meminfo=MEMINFO)) == 4000 * 1024
    assert free_memory(CPU, tmp_path / "nothing") is None
    assert free_memory(torch.device("meta"), tmp_path) is None


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)


def test_the_tightest_control_group_counts_and_file_caches_are_not_used(tmp_path: Path) -> None:
    machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/outer/inner\n")
    top = tmp_path / "sys" / "fs" / "cgroup"
    write_group(top / "outer", max="3000000", current="2500000", stat="anon 7\ninactive_file 600000\n")
    write_group(top / "outer" / "inner", max="max", current="2400000")
    assert free_memory(CPU, tmp_path) == 3000000 - 2500000 + 600000


def test_control_groups_of_the_first_version(tmp_path: Path) -> None:
    machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="5:cpu:/\n4:memory:/box\n0::/\n")
    top = tmp_path / "sys" / "fs" / "cgroup" / "memory"
    write_group(top, limit_in_bytes="9223372036854771712", usage_in_bytes="5")
    write_group(top / "box", limit_in_bytes="1000000", usage_in_bytes="900000", stat="total_inactive_file 50000\n")
    assert free_memory(CPU, tmp_path) == 150000
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/seen/from/outside\n")  # of a container
    write_group(top, limit_in_bytes="2000000", usage_in_bytes="500000")
    assert free_memory(CPU, tmp_path) == 1500000


def test_this_machine_says_what_is_free() -> None:
    free = free_memory(CPU)
    assert free is None or free > 0
