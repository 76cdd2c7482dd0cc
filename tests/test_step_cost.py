"""What a step costs: that the floor holds the passes which updates and steps really run, and the rows. No timing."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree import bnstats, modes
from datafree.networks.generators import Discriminator, Generator, ResizeGenerator
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GENERATED = ["unet/degan", "resnet/cgdd", "resnet/dafl", "resnet/dfad", "resnet/zskt"]
OPTIMISED = ["resnet/inversion", "resnet/cmi", "resnet/fast"]
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def cost() -> Iterator[ModuleType]:
    """benchmarks/step_cost.py as a module; the search path and module table are put back."""
    search_path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    import step_cost

    yield step_cost
    sys.path[:] = search_path
    for name in {"step_cost", "classification_rows", "results"} - modules:
        sys.modules.pop(name, None)


@pytest.fixture
def rig(cost: ModuleType, group: str, photos: Callable[..., Path]) -> Any:
    """The rig of a group, its networks small."""
    made = cost.make_rig(group, photos(), CPU, quick=True)
    for name in ("teacher", "student"):
        made.networks[name].called = name  # copies are called so too
    return made


@contextmanager
def watched(cost: ModuleType) -> Iterator[list[Any]]:
    """Within it, forward passes of whole networks are noted as the passes that they are, whoever runs them."""
    kinds = {ResizeGenerator: "generator", Generator: "generator", Discriminator: "discriminator"}
    seen: list[Any] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if name := getattr(module, "called", kinds.get(type(module))):
            to_input = inputs[0].requires_grad
            to_parameters = any(p.requires_grad for p in module.parameters())
            to = {(True, False): "input", (False, True): "parameters", (True, True): "both"}
            reached = to.get((to_input, to_parameters), "nothing") if torch.is_grad_enabled() else "nothing"
            mode = "train" if module.training else "eval"
            seen.append(cost.Pass(network=name, images=len(inputs[0]), to=reached, mode=mode))

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


# The floor.


@pytest.mark.parametrize("group", [*GENERATED, *OPTIMISED])
def test_the_floor_of_an_update_is_the_passes_that_it_runs(cost: ModuleType, rig: Any) -> None:
    rig.attach()
    with modes.frozen(rig.networks["teacher"]), watched(cost) as seen:
        rig.update()
        whole = list(seen)
        seen.clear()
        rig.floor(rig.update_floor)
    assert Counter(whole) == Counter(rig.update_floor)
    assert seen == rig.update_floor


@pytest.mark.parametrize("group", GENERATED)
def test_the_floor_of_a_students_step_is_the_passes_that_the_loop_runs(cost: ModuleType, rig: Any) -> None:
    steps: list[list[Any]] = []

    def before() -> str | None:
        steps.append(list(seen))
        rig.floor(rig.step_floor)
        if len(steps) == 2:
            assert seen[-len(rig.step_floor) :] == rig.step_floor
        seen.clear()
        return "enough" if len(steps) == 4 else None

    with watched(cost) as seen:
        rig.loop(before)
    assert [Counter(step) for step in steps[2:]] == 2 * [Counter(rig.step_floor)]  # the first step has an update, too


@pytest.mark.parametrize("group", ["resnet/cgdd", "resnet/fast"])
def test_a_method_needs_each_network_as_its_formula_has_it(cost: ModuleType, rig: Any, group: str) -> None:
    """Written out for a batch of 4: what the tables of passes say of two methods."""
    of = {
        "resnet/cgdd": [("generator", "parameters"), ("teacher", "input"), ("student", "input")],
        "resnet/fast": 2 * [("generator", "both"), ("teacher", "input"), ("student", "input")],
    }
    assert [(one.network, one.to) for one in rig.update_floor] == of[group]
    assert {one.images for one in rig.update_floor} == {4}
    if group == "resnet/cgdd":  # three of four images are old
        passes = [(one.network, one.images, one.to) for one in rig.step_floor]
        assert passes == [("generator", 1, "nothing"), ("teacher", 4, "nothing"), ("student", 4, "parameters")]


@pytest.mark.parametrize("group", ["resnet/cgdd", "resnet/dafl", "resnet/dfad", "resnet/zskt", "resnet/fast"])
def test_the_generator_of_the_floor_is_the_sources(rig: Any) -> None:
    rig.attach()
    theirs, ours = rig.source.artefacts()["generator"], rig.networks["generator"]
    assert type(ours) is type(theirs)
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("group", ["resnet/cgdd"])
def test_bare_passes_leave_the_runs_networks_as_they_were(cost: ModuleType, rig: Any) -> None:
    rig.attach()
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in rig.networks.items()}
    rig.floor([*rig.update_floor, *rig.step_floor])
    for name, network in rig.networks.items():
        assert all(torch.equal(value, before[name][key]) for key, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())


# What is timed.


def test_ratios_are_of_the_same_moment_and_their_median_counts(cost: ModuleType) -> None:
    found = cost.metrics([1.0, 4.0, 9.0], [1.0, 2.0, 3.0], 8)
    assert found == {"over_floor": 2.0, "images_per_second": 2.0}


def test_updates_of_many_iterations_are_cut_short_and_scaled(cost: ModuleType, tmp_path: Path) -> None:
    inversion = cost.make_rig("resnet/inversion", tmp_path, CPU, quick=False)
    assert (inversion.source.iterations, inversion.share) == (10, 0.1)
    fast = cost.make_rig("resnet/fast", tmp_path, CPU, quick=False)
    assert (fast.source.iterations, fast.share) == (5, 1.0)


def test_cmi_remembers_as_many_images_as_at_the_end_of_its_run(cost: ModuleType, tmp_path: Path) -> None:
    rig = cost.make_rig("resnet/cmi", tmp_path, CPU, quick=False)
    assert (rig.source.iterations, rig.share) == (10, 0.25)
    rig.attach()
    updates = 10 + 17  # ten first; then before the steps 0, 60, ..., 960 of 1,000
    assert len(rig.source.state_dict()["remembered"]) == rig.source.memory == 64 * updates


def test_the_large_pair_is_of_resnet_20_and_its_student_half_as_wide(cost: ModuleType, tmp_path: Path) -> None:
    rig = cost.make_rig("resnet20/zskt", tmp_path, CPU, quick=False)
    assert rig.task.image_size == (32, 32)
    for name, width in (("teacher", 16), ("student", 8)):
        shapes = [p.shape for p in rig.networks[name].parameters()]
        assert shapes == [p.shape for p in resnet(10, depth=20, width=width).parameters()]


def test_all_forms_of_the_statistics_have_one_gradient_and_change_nothing(cost: ModuleType) -> None:
    torch.manual_seed(0)
    teacher = Normalized(resnet(5, depth=8, width=4)).eval().requires_grad_(False)
    images, kept = torch.rand(4, 3, 16, 16), bnstats.moments
    none, plain, fused = (
        cost.statistics_pass(teacher, images, moments)() for moments in (None, bnstats.plain_moments, bnstats.moments)
    )
    assert bnstats.moments is kept

    pixels = images.clone().requires_grad_()
    match = bnstats.StatisticsMatch(network=teacher)
    with match.watching():
        answer = teacher(pixels).sum()
    (bare,) = torch.autograd.grad(answer, pixels, retain_graph=True)
    (both,) = torch.autograd.grad(answer + match.distance(), pixels)
    torch.testing.assert_close(none, bare)
    for found in (plain, fused):
        torch.testing.assert_close(found, both, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(bare, both, rtol=1e-2)


# The rows.


@pytest.mark.parametrize(
    ("group", "rows"),
    [
        *((group, ["update", "student_step"]) for group in ("unet/degan", "resnet/cgdd", "resnet20/zskt")),
        ("resnet/inversion", ["update"]),
        ("bnstats/resnet", ["fp32/none", "fp32/plain", "fp32/fused"]),
    ],
)
def test_every_kind_of_group_has_its_rows(
    cost: ModuleType, photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, group: str, rows: list[str]
) -> None:
    monkeypatch.setattr(modes, "_has_native_bf16", lambda device: False)
    found = cost.measure(group, photos(), 1, CPU, quick=True)
    assert list(found) == [f"{group}/{row}" for row in rows]
    for metrics in found.values():
        assert list(metrics) == ["over_floor", "images_per_second"]
        assert min(metrics.values()) > 0


def test_statistics_are_measured_in_bf16_too_where_the_hardware_has_it(
    cost: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_has_native_bf16", lambda device: True)
    pair = replace(cost.SMALL_CLASSIFICATION, teacher=replace(cost.SMALL_CLASSIFICATION.teacher, weights=None))
    rows = cost.measure_statistics(pair, 1, CPU)
    assert list(rows) == [f"{kind}/{form}" for kind in ("fp32", "bf16") for form in ("none", "plain", "fused")]


def test_groups_are_chosen_by_name_or_by_either_part(cost: ModuleType) -> None:
    assert cost.chosen_groups([]) == list(cost.GROUPS)
    assert len(cost.GROUPS) == 2 + 2 * 7 + 2
    assert cost.chosen_groups(["bnstats", "unet"]) == ["unet/degan", "bnstats/resnet", "bnstats/resnet20"]
    assert cost.chosen_groups(["cgdd", "resnet20/fast"]) == ["resnet/cgdd", "resnet20/cgdd", "resnet20/fast"]
    with pytest.raises(ValueError, match="there is no group 'res'; known: unet/degan, "):
        cost.chosen_groups(["cgdd", "res"])


def test_a_quick_run_writes_nothing(
    cost: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("write_results", "write_table"):
        monkeypatch.setattr(cost, name, lambda *args, **options: pytest.fail("written"))
    cost.main(["--quick", "--only", "bnstats/resnet", "--device", "cpu"])
    assert "bnstats/resnet/fp32/fused {'over_floor': " in capsys.readouterr().out


def test_a_run_is_written_with_its_command_rows_and_table(cost: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, written = iter([1.0, 1.2]), {}
    monkeypatch.setattr(
        cost, "measure", lambda *args: {"a/b/update": {"over_floor": next(rounds), "images_per_second": 99.6}}
    )
    monkeypatch.setattr(cost, "write_results", lambda *args, command: written.update(results=(*args, command)))
    monkeypatch.setattr(cost, "write_table", lambda *args: written.update(table=args))
    cost.main(["--only", "resnet/cgdd", "--repeats", "2", "--device", "cpu"])
    name, size, rows, command = written["results"]
    assert (name, size) == ("step_cost", "cpu")
    assert command == "python benchmarks/step_cost.py --only resnet/cgdd --repeats 2 --device cpu"
    assert [cell["metrics"]["over_floor"] for cell in rows["a/b/update"]] == [1.0, 1.2]
    assert all(cell["seconds"] >= 0 and cell["peak_memory_mib"] > 0 for cell in rows["a/b/update"])
    assert written["table"][:2] == ("results.md", "step_cost-cpu")
    assert "| a/b/update | 1.10 ± 0.14 | 100 |" in written["table"][2]
