"""plan.py and its parts: what a run will cost, on how many devices; the arithmetic by hand."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from datafree.cli import main
from datafree.cli.plan_text import plan_text
from datafree.distributed import replicas
from datafree.engine.build_networks import build_networks
from datafree.errors import RecipeError
from datafree.networks import features
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.preflight.cost import estimate
from datafree.preflight.cost.calibration import Calibration, CostItem, Growth, banks_of
from datafree.preflight.cost.forecast import outline
from datafree.preflight.cost.many_devices import WAIT, divided, rounds, together
from datafree.preflight.cost.pass_cost import Cost, cost_of, watched_passes
from datafree.preflight.option_values import parse_link
from datafree.preflight.plan import Plan, plan
from datafree.recipe.recipe import Recipe, dump, load_recipe
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources.inversion import Inversion
from datafree.sources.mixed import Mixed
from datafree.sources.noise import Noise
from datafree.storage.run_directory import Run
from datafree.synthesis.synthesize import synthesize
from recipes import write
from small_runs import recipe_for
from thorough import some

CPU = torch.device("cpu")
STEP = Cost(seconds=1.0, passes=0.8, images=12, gathered=4000.0, summed=1000.0, exchanges=10.0)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings that take one pass of two images, for tests that are about something else."""
    monkeypatch.setattr(estimate, "PASS", 0.0)


# --- devices ---


def test_devices_divide_passes_and_nothing_else() -> None:
    seconds, exchanged = divided(STEP, 8, link=1e3)
    assert exchanged == pytest.approx(7 / 8 * (4000 + 2 * 1000))
    # 2 of 12 images are the largest part; what is no pass stays; the link moves a thousand bytes a second.
    assert seconds == pytest.approx(0.2 + 0.8 * 2 / 12 + 5250 / 1e3 + 10 * WAIT)


def test_devices_that_share_out_batches_divide_all_of_it_and_gather_nothing() -> None:
    seconds, exchanged = divided(STEP.shared_out(), 4, link=1e3)
    assert exchanged == pytest.approx(3 / 4 * 2 * 1000)
    assert seconds == pytest.approx(1.0 / 4 + 1500 / 1e3 + 10 * WAIT)


def test_one_device_exchanges_nothing_and_a_batch_below_the_devices_is_computed_whole() -> None:
    assert divided(STEP, 1, link=1e3) == (1.0, 0.0)
    assert divided(STEP, 16, link=1e3) == (1.0, 0.0)


def test_a_run_on_devices_is_the_sum_of_its_work() -> None:
    saves = CostItem(what="saves", often=3, each=Cost(seconds=0.5))
    steps = CostItem(what="the student", often=100, each=STEP)
    each, _ = divided(STEP, 4, link=1e9)
    assert together([steps, saves], 4, link=1e9) == pytest.approx(100 * each + 3 * 0.5)
    assert together([steps, saves], 1, link=1e9) == pytest.approx(100 + 1.5)


def test_shards_are_made_side_by_side_unless_each_goes_on_from_the_last() -> None:
    assert [rounds(100, devices, carries=False) for devices in (1, 8, 64)] == [100, 13, 2]
    assert rounds(100, 64, carries=True) == 100


@pytest.mark.parametrize(
    ("text", "speed"), [("10GB/s", 10e9), ("800MB/s", 8e8), ("25Gbit/s", 25e9 / 8), (" 1.5 TB/s ", 1.5e12)]
)
def test_a_link_is_bytes_a_second(text: str, speed: float) -> None:
    assert parse_link(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "10", "10GB", "-1GB/s", "0GB/s", "1e400GB/s", "10gb/s"])
def test_a_link_that_is_no_speed_is_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match="is no speed; write it as 10GB/s") as caught:
        parse_link(text)
    assert len(caught.value.problems) == 1


# --- what is divided and exchanged, counted ---


def pass_of(work: Callable[[], object]) -> tuple[float, float, float]:
    with watched_passes(CPU) as watcher:
        work()
    return watcher.gathered, watcher.summed, watcher.exchanges


def test_a_pass_without_gradients_gathers_its_answers() -> None:
    network = replicas.share(nn.Linear(6, 5))
    with torch.no_grad():
        assert pass_of(lambda: network(torch.rand(4, 6))) == (4 * 4 * 5, 0, 1)


def test_a_pass_back_to_its_images_gathers_these_and_one_to_its_weights_sums_those() -> None:
    network, images = replicas.share(nn.Linear(6, 5)), torch.rand(4, 6, requires_grad=True)
    weights = 4 * (6 * 5 + 5)
    assert pass_of(lambda: network(images).sum().backward()) == (4 * 4 * (5 + 6), weights, 3)
    assert pass_of(lambda: network.requires_grad_(False)(images).sum().backward()) == (4 * 4 * (5 + 6), 0, 2)


def test_batchnorm_in_train_mode_sums_twice_forward_and_twice_back() -> None:
    network = replicas.share(nn.Sequential(nn.BatchNorm2d(7), nn.Flatten()))
    images = torch.rand(4, 7, 1, 1)
    answers, weights = 4 * 4 * 7, 4 * 2 * 7
    assert pass_of(lambda: network(images).sum().backward()) == (answers, weights + 4 * 4 * 7, 1 + 1 + 4)
    with torch.no_grad():
        assert pass_of(lambda: network(images)) == (answers, 2 * 4 * 7, 1 + 2)
        assert pass_of(lambda: network.eval()(images)) == (answers, 0, 1)


def test_what_is_looked_at_inside_a_pass_is_exchanged_too() -> None:
    network = replicas.share(nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 5)))

    def look() -> None:
        with torch.no_grad(), features.watched(network, ["0"]):
            network(torch.rand(4, 6))

    assert pass_of(look) == (4 * 4 * (5 + 3), 0, 2)


def test_all_of_a_detectors_answer_is_gathered() -> None:
    network = replicas.share(yolov3(2, width=1 / 32)).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        answer = network(images)
        parts = (answer.class_logits, answer.scores, answer.boxes, answer.centres, *answer.heads)
        assert pass_of(lambda: network(images)) == (sum(part.nbytes for part in parts), 0, len(parts))


def test_networks_that_are_not_shared_are_no_pass() -> None:
    network = nn.Linear(6, 5)
    assert pass_of(lambda: network(torch.rand(4, 6)).sum().backward()) == (0, 0, 0)


class Slow(nn.Module):
    """Takes three seconds forward and five back, by the test's clock."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.weight, self.clock = nn.Parameter(torch.ones(1)), clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock[0] += 3
        y = x * self.weight
        y.register_hook(lambda _: self.clock.__setitem__(0, self.clock[0] + 5))
        return y * 1.0


def test_a_pass_is_timed_forward_and_back_and_what_is_between_is_not() -> None:
    clock = [0.0]
    first, second = replicas.share(Slow(clock)), replicas.share(Slow(clock))

    def work() -> None:
        clock[0] += 1
        between = second(first(torch.ones(2, 1)))
        between.register_hook(lambda _: clock.__setitem__(0, clock[0] + 2))
        clock[0] += 1
        (between * 2).sum().backward()
        clock[0] += 4

    found = cost_of(work, CPU, 2, budget=0.0, clock=lambda: clock[0])
    assert found.seconds == pytest.approx(1 + 3 + 3 + 1 + 2 + 5 + 5 + 4)
    assert found.passes == pytest.approx(
        3 + 3 + 5 + 5 + 2
    )  # what hangs on the answer's own gradient counts as the pass
    assert found.images == 2


def test_costs_add_up_and_grow_with_images() -> None:
    assert (STEP + STEP.times(2)).summed == 3000
    grown = STEP.of_images(24)
    assert (grown.seconds, grown.passes, grown.gathered) == (2.0, 1.6, 8000.0)
    assert (grown.summed, grown.exchanges, grown.images) == (1000.0, 10.0, 24)


# --- banks and disk ---


def test_banks_are_taken_whole_where_anything_is_made() -> None:
    training = Training(steps=10, batch_size=4)
    first, second = Inversion(warmup=3, bank_size=100), Inversion(warmup=3, bank_size=12)
    assert banks_of(first, training, (8, 6), CPU) == 100 * 3 * 8 * 6
    assert banks_of(Mixed(parts=[first, second]), training, (8, 6), CPU) == 112 * 3 * 8 * 6
    assert banks_of(Noise(), training, (8, 6), CPU) == 0


def test_a_host_gives_a_bank_what_is_written_a_gpu_all_of_it() -> None:
    """3 updates of 20 images, of which a bank of 100 holds 60."""
    training, source = Training(steps=10, batch_size=4), Inversion(warmup=3, batch_size=20, bank_size=100)
    assert banks_of(source, training, (8, 6), CPU) == 60 * 3 * 8 * 6
    assert banks_of(source, training, (8, 6), torch.device("cuda")) == 100 * 3 * 8 * 6


def planned(recipe: Recipe, **options: Any) -> Plan:
    return plan(recipe, **options)


@pytest.mark.parametrize("method", some(["cmi", "cgdd", "dafl"]))
def test_a_run_leaves_on_the_disk_what_was_planned(
    tmp_path: Path, untimed: None, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """States with a full bank, weights and pictures; saves and pictures as often as the run makes them."""
    said = planned(recipe_for(tmp_path, {"method": method}, device="cpu", precision="fp32"))
    saved, write = [], Run.save_state

    def noted(self: Run, state: dict[str, Any], **options: Any) -> bool:
        saved.append(state["step"])
        return write(self, state, **options)

    monkeypatch.setattr(Run, "save_state", noted)
    run_recipe(recipe_for(tmp_path, {"method": method}, device="cpu", precision="fp32"), tmp_path / "run")

    pictures = list((tmp_path / "run" / "samples").iterdir())
    often = {row.what: row.often for row in said.work}
    assert often["saves"] == len(saved)
    assert often["pictures"] == len(pictures)
    assert often["looks at held-out images"] == sum(step > 0 for step in saved)
    assert often["the student"] == 12

    sizes = {what.split(",")[0]: size for what, size in said.disk.items()}
    assert set(sizes) == {"states", "weights", "pictures", "page", "logs"}
    assert sizes["states"] == pytest.approx(3 * (tmp_path / "run" / "state" / "state.pt").stat().st_size, rel=0.1)
    weights = sum(file.stat().st_size for file in (tmp_path / "run").glob("*.safetensors"))
    assert sizes["weights"] == pytest.approx(weights, rel=0.1)
    assert sizes["pictures"] == pytest.approx(sum(file.stat().st_size for file in pictures), rel=0.5)  # of other images


@pytest.mark.parametrize(("method", "carries"), [("inversion", False), ("cmi", True)])
def test_a_data_set_is_planned_as_it_is_made(tmp_path: Path, untimed: None, method: str, carries: bool) -> None:
    def recipe() -> Recipe:
        return recipe_for(tmp_path, {"method": method}, device="cpu", precision="fp32")

    said = planned(recipe(), images=10)
    made = synthesize(recipe(), tmp_path / "set", 10)
    assert said.shards == made.shards
    files = list(made.path.rglob("*.png"))
    assert said.files == len(files) + made.shards
    size = sum(file.stat().st_size for file in files) + sum(
        file.stat().st_size for file in (tmp_path / "set" / "shards").iterdir()
    )
    left = [file.stat().st_size for file in (tmp_path / "set" / "state").glob("before-*")]
    assert sum(said.disk.values()) == pytest.approx(size * 10 / made.images + 2 * sum(left), rel=0.2)
    assert bool(left) is carries
    one, eight, _ = said.on
    assert (one.seconds == eight.seconds) is carries
    assert any("one is made after the other" in note for note in said.notes) is carries


@pytest.mark.parametrize("init", ["teacher", "random"])
def test_a_start_from_the_teacher_is_planned_as_work_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: Literal["teacher", "random"]
) -> None:
    monkeypatch.setattr("datafree.preflight.cost.start_cost.seconds_of_start", lambda calibrated: 1000.0)
    recipe = recipe_for(tmp_path, {"method": "noise"}, device="cpu", precision="fp32")
    said: list[str] = []
    made = plan(replace(recipe, student=replace(recipe.student, init=init)), say=said.append)
    rows = {row.what: (row.often, row.each) for row in made.work}
    assert rows.get("the student's start") == ((1, 1000.0) if init == "teacher" else None)
    assert (made.on[0].seconds > 1000) == (init == "teacher")
    assert ("and the student's start from its teacher; the rest is being timed" in said[1]) == (init == "teacher")


def test_the_steps_of_a_time_are_not_told_before_they_are_planned(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, time="30m", batch_size=3)
    assert outline(recipe, None, resolved=False) == f"{recipe.name}: as many steps of 3 images as fit into 30m"
    assert outline(recipe, None).startswith(f"{recipe.name}: 12 steps, batches of 3")


def test_a_directory_is_called_by_its_path() -> None:
    assert NetworkSpec(network="hf//data/vit").called == "/data/vit"
    assert NetworkSpec(network="hf/models/vit").called == "hf/models/vit"
    assert NetworkSpec(network="timm/resnet18").called == "timm/resnet18"


def test_nothing_is_left_behind(tmp_path: Path, untimed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    recipe = recipe_for(tmp_path, {"method": "dafl", "warmup": 2}, device="cpu", precision="fp32")
    before = sorted(tmp_path.rglob("*"))
    source = vars(recipe.source).copy()
    planned(recipe)
    planned(recipe, images=20)
    assert sorted(tmp_path.rglob("*")) == before
    assert vars(recipe.source) == source  # made small as a copy only


# --- text ---


def test_the_text_says_time_memory_disk_devices_and_what_it_assumed(tmp_path: Path, untimed: None) -> None:
    said = planned(recipe_for(tmp_path, {"method": "dafl"}, device="cpu", precision="fp32"), link=2.5e9)
    text = plan_text(said)
    lines = text.splitlines()
    assert lines[0].startswith("run of ")
    rows = [line.split() for line in lines if line.split()[:1] in (["1"], ["8"], ["64"])]
    assert [row[0] for row in rows] == ["1", "8", "64"]
    for word in ("memory", "disk", "device-hours", "calibrated", "assumed", "a link moves 2.5 GB a second", "threads"):
        assert word in text
    assert any("gives each of 8 devices less than 8 images" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--synthesize"], "--images is missing; say how many, such as --images 1000"),
        (["--images", "10"], "--images 10 is about a data set; give --synthesize with it"),
        (["--link", "slow"], "--link 'slow' is no speed; write it as 10GB/s, 800MB/s or 25Gbit/s"),
        (["--synthesize", "--images", "9", "source={method: dafl, update_every: 1}"], "source.warmup: is 0, and no"),
        (["teacher.weights=none.safetensors"], "teacher.weights: 'none.safetensors' is no file here"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    file = write(tmp_path, dump(recipe_for(tmp_path, {"method": "noise"}, device="cpu", precision="fp32")))
    found = CliRunner().invoke(main.app, ["plan", file, *words])
    assert isinstance(found.exception, RecipeError)
    (line,) = found.exception.problems
    assert line.startswith(said)
    assert "\n" not in line


def test_json_has_the_whole_plan(tmp_path: Path, untimed: None) -> None:
    file = write(tmp_path, dump(recipe_for(tmp_path, {"method": "noise"}, device="cpu", precision="fp32")))
    found = CliRunner().invoke(main.app, ["plan", file, "--json"])
    content = json.loads(found.stdout)
    assert set(content) == {field.name for field in dataclasses.fields(Plan)}
    assert [on["devices"] for on in content["on"]] == [1, 8, 64]
    assert content["on"][0]["seconds"] == pytest.approx(sum(row["often"] * row["each"] for row in content["work"]))


def test_what_a_source_keeps_now_and_then_is_no_growth_of_its_bank() -> None:
    """Two images of 30 bytes an update, and once a guard's copy of 680."""
    assert Growth.of([100, 160, 220, 960, 1020], 2, 8) == Growth(each=30.0, made=8)


@pytest.mark.parametrize("method", some(["fast", "cmi", "cgdd", "procedural"]))
def test_updates_that_are_slow_tell_the_same_of_a_full_bank_as_quick_ones(tmp_path: Path, method: str) -> None:
    """Of a new source a few updates are made; slow ones have been made already, and are not made again."""
    recipe = recipe_for(tmp_path, {"method": method}, device="cpu", precision="fp32")
    training = cast("Training", recipe.training)
    said = []
    for budget in (0.0, 0.5):
        torch.manual_seed(0)
        networks = build_networks(recipe, CPU, torch.float32)
        with modes.frozen(networks.teacher):
            calibrated = Calibration(
                task=recipe.task, teacher=networks.teacher, student=networks.student, source=recipe.source,
                training=training, dtype=torch.float32, most=2, budget=budget, clock=time.thread_time,
            )  # fmt: skip
            calibrated.updates(range(-recipe.source.warmup, training.steps))
            assert bool(calibrated.grown) == (budget == 0.0)
            said.append(calibrated.state_bytes(range(-recipe.source.warmup, training.steps)))
    assert said[0] == pytest.approx(said[1], rel=0.02)


# --- the truth ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("garments-degan", ["source.parts.1.warmup=40", "training.steps=150"]),
        ("boxes-demo", ["source.warmup=15", "training.steps=60"]),
    ],
)
def test_a_plan_comes_true_within_a_factor_of_two(tmp_path: Path, name: str, overrides: list[str]) -> None:
    said = plan(load_recipe(name, overrides))
    began = time.perf_counter()
    run_recipe(load_recipe(name, overrides), tmp_path / "run")
    taken = time.perf_counter() - began
    there = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert 0.5 < said.on[0].seconds / taken < 2
    assert 0.5 < sum(said.disk.values()) / there < 2.5  # it counts a third state, and a bank that is full


def test_the_network_of_a_calibration_is_not_left_with_hooks() -> None:
    network = replicas.share(Normalized(resnet(5, depth=8, width=2)))
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    pass_of(lambda: network(images).sum().backward())
    assert not any(p._backward_hooks for p in network.parameters())
    assert not replicas.listeners
