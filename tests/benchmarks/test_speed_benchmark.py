"""The speed table: that the floor holds the passes which updates and steps really run, and the rows. No timing."""

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import Interrupted
from datafree.networks.generators import Discriminator, Generator, ResizeGenerator
from datafree.networks.load import NetworkSpec
from datafree.ops import modes
from datafree.sources import SOURCES
from datafree.tasks.classification import Classification

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SLOW = ("small/dafl", "small/dfad", "small/zskt", "small/inversion", "small/fast", "small/folder", "small/noise")
GENERATED = ["unet/degan", "small/cgdd", "small/dafl", "small/dfad", "small/zskt", "yolov3-tiny/cgdd"]
OPTIMISED = ["small/inversion", "small/cmi", "small/fast", "yolov3-tiny/diode"]
READ = ["small/folder", "small/noise", "small/mixed", "small/dataset"]
CPU = torch.device("cpu")
TINY = NetworkSpec(network="datafree/resnet", args={"depth": 8, "width": 4})


def some_slow(groups: list[str]) -> list[Any]:
    """The groups as parameters of a test; those that show little more than others do are among the slow ones."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in groups]


pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    """benchmarks/speed.py."""
    return importlib.import_module("speed")


@pytest.fixture
def rig(speed: ModuleType, group: str, photos: Callable[..., Path]) -> Any:
    """The rig of a group, its networks small."""
    pair, method = group.split("/")
    made = speed.make_rig(speed.QUICK[pair], method, photos(), CPU)
    for name in ("teacher", "student"):
        made.networks[name].called = name  # copies are called so too
    return made


@contextmanager
def watched(speed: ModuleType) -> Iterator[list[Any]]:
    """Within it, forward passes of whole networks are noted as the passes that they are, whoever runs them."""
    from speed_passes import Pass  # beside benchmarks/speed.py

    kinds = {ResizeGenerator: "generator", Generator: "generator", Discriminator: "discriminator"}
    seen: list[Any] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if name := getattr(module, "called", kinds.get(type(module))):
            to_input = inputs[0].requires_grad
            to_parameters = any(p.requires_grad for p in module.parameters())
            to = {(True, False): "input", (False, True): "parameters", (True, True): "both"}
            reached = to.get((to_input, to_parameters), "nothing") if torch.is_grad_enabled() else "nothing"
            mode = "train" if module.training else "eval"
            seen.append(Pass(network=name, images=len(inputs[0]), to=reached, mode=mode))

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


# The floor.


@pytest.mark.parametrize("group", some_slow([*GENERATED, *OPTIMISED]))
def test_the_floor_of_an_update_is_the_passes_that_it_runs(speed: ModuleType, rig: Any) -> None:
    rig.attach()
    with modes.frozen(rig.networks["teacher"]), watched(speed) as seen:
        rig.update()
        whole = list(seen)
        seen.clear()
        rig.floor(rig.update_floor)
    assert Counter(whole) == Counter(rig.update_floor)
    assert seen == rig.update_floor


@pytest.mark.parametrize("group", some_slow([*GENERATED, *READ]))
def test_the_floor_of_a_students_step_is_the_passes_that_the_loop_runs(speed: ModuleType, rig: Any) -> None:
    steps: list[list[Any]] = []

    def before() -> str | None:
        steps.append(list(seen))
        rig.floor(rig.step_floor)
        if len(steps) == 2:
            assert seen[-len(rig.step_floor) :] == rig.step_floor
        seen.clear()
        return "enough" if len(steps) == 4 else None

    with watched(speed) as seen:
        rig.loop(before)
    assert [Counter(step) for step in steps[2:]] == 2 * [Counter(rig.step_floor)]  # the first step has an update, too


@pytest.mark.parametrize("group", ["small/cgdd", "small/fast", "yolov3-tiny/diode"])
def test_a_method_needs_each_network_as_its_formula_has_it(rig: Any, group: str) -> None:
    """Written out for a batch of 4: what the tables of passes say of three methods."""
    of = {
        "small/cgdd": [("generator", "parameters"), ("teacher", "input"), ("student", "input")],
        "small/fast": 2 * [("generator", "both"), ("teacher", "input"), ("student", "input")],
        "yolov3-tiny/diode": [("teacher", "input"), ("teacher", "input"), ("teacher", "nothing")],
    }
    assert [(one.network, one.to) for one in rig.update_floor] == of[group]
    assert {one.images for one in rig.update_floor} == {4}
    if group == "small/cgdd":  # three of four images are old
        passes = [(one.network, one.images, one.to) for one in rig.step_floor]
        assert passes == [("generator", 1, "nothing"), ("teacher", 4, "nothing"), ("student", 4, "parameters")]


@pytest.mark.parametrize("group", ["small/cgdd", "small/dfad", "resnet34-18/zskt", "small/fast"])
def test_the_generator_of_the_floor_is_the_sources(rig: Any) -> None:
    rig.attach()
    theirs, ours = rig.source.artefacts()["generator"], rig.networks["generator"]
    assert type(ours) is type(theirs)
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("group", ["small/cgdd"])
def test_bare_passes_leave_the_runs_networks_as_they_were(rig: Any) -> None:
    rig.attach()
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in rig.networks.items()}
    rig.floor([*rig.update_floor, *rig.step_floor])
    for name, network in rig.networks.items():
        assert all(torch.equal(value, before[name][key]) for key, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())


# What is timed.


def test_ratios_are_of_the_same_moment_and_their_median_counts(speed: ModuleType) -> None:
    from speed_timing import metrics  # beside benchmarks/speed.py

    found = metrics([1.0, 4.0, 9.0], [1.0, 2.0, 3.0], 8)
    assert found == {"over_floor": 2.0, "over_floor_low": 1.5, "over_floor_high": 2.5, "images_per_second": 2.0}


def test_the_networks_share_is_what_the_bare_passes_do_kind_by_kind(speed: ModuleType) -> None:
    from speed_timing import shares  # beside benchmarks/speed.py

    whole = {"convolution": 6.0, "add": 3.0, "copy": 1.0, "nothing": 0.001}
    found = shares(whole, {"convolution": 5.0, "add": 1.0, "relu": 2.0}, total=10.0)
    assert found.pop("in_networks") == pytest.approx(0.6)
    assert list(found) == ["rest: add", "rest: convolution", "rest: copy"]
    assert list(found.values()) == pytest.approx([0.2, 0.1, 0.1])


def test_updates_of_many_iterations_are_cut_short_and_scaled(speed: ModuleType, tmp_path: Path) -> None:
    inversion = speed.make_rig(speed.PAIRS["small"], "inversion", tmp_path, CPU)
    assert (inversion.source.iterations, inversion.share) == (10, 0.1)
    fast = speed.make_rig(speed.PAIRS["small"], "fast", tmp_path, CPU)
    assert (fast.source.iterations, fast.share) == (5, 1.0)


def test_changes_of_images_are_counted_each(speed: ModuleType, tmp_path: Path) -> None:
    from speed_timing import measure_update  # beside benchmarks/speed.py

    rig = speed.make_rig(speed.QUICK["fastestdet"], "diode", tmp_path, CPU)  # two iterations
    rig.attach()
    found = measure_update(rig, 1)
    assert found["image_iterations_per_second"] == pytest.approx(2 * found["images_per_second"])
    assert speed.make_rig(speed.QUICK["small"], "dafl", tmp_path, CPU).iterations == 0


def test_cmi_remembers_as_many_images_as_at_the_end_of_its_run(speed: ModuleType, tmp_path: Path) -> None:
    rig = speed.make_rig(speed.PAIRS["small"], "cmi", tmp_path, CPU)
    assert (rig.source.iterations, rig.share) == (10, 0.25)
    rig.attach()
    updates = 10 + 17  # ten first; then before the steps 0, 60, ..., 960 of 1,000
    assert len(rig.source.state_dict()["remembered"]) == rig.source.memory == 64 * updates


def test_every_source_and_every_task_has_a_row(speed: ModuleType) -> None:
    methods = {method for pair in speed.PAIRS.values() for method in pair.rows}
    assert methods == set(SOURCES) - {"auto"}  # which is one of the others
    assert {pair.task for pair in speed.PAIRS.values()} == {"classification", "segmentation", "detection"}
    assert {(pair, method) for pair in speed.PAIRS for method in speed.PAIRS[pair].rows} == {
        (pair, method) for pair in speed.PAIRS for method in speed.QUICK[pair].rows if method in speed.PAIRS[pair].rows
    }


def test_all_forms_of_an_iteration_on_pixels_have_one_gradient(speed: ModuleType) -> None:
    from speed_forms import FORMS, _iteration  # beside benchmarks/speed.py

    torch.manual_seed(0)
    task = Classification(num_classes=5, image_size=(16, 16))
    images, labels = torch.rand(2, 3, 16, 16), torch.arange(2)
    found = {name: _iteration(form, TINY, task, images, labels)() for name, form in FORMS.items()}
    for name, gradient in found.items():
        away = (gradient - found["plain"]).norm() / found["plain"].norm()
        assert away < (0.1 if name == "bf16" else 1e-4)
    assert not torch.equal(found["bf16"], found["fused_statistics"])


# The rows.


@pytest.mark.parametrize(
    ("group", "rows"),
    [
        *((group, ["update", "student_step"]) for group in ("unet/degan", "resnet34-18/cgdd")),
        ("small/inversion", ["update"]),
        ("small/folder", ["student_step"]),
        ("pixels/resnet50", ["plain", "frozen", "channels_last", "fused_statistics", "bf16"]),
        ("switches/resnet34-18", ["channels_last", "fused_statistics", "fused_optimizers"]),
        pytest.param("agreement/fashion-cgdd", ["on", "off"], marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_group_has_its_rows(
    speed: ModuleType, photos: Callable[..., Path], group: str, rows: list[str]
) -> None:
    found = speed.measure(group, photos(), 1, CPU, quick=True)
    assert list(found) == [f"{group}/{row}" for row in rows]
    assert all(min(metrics.values()) >= 0 for metrics in found.values())


def test_a_profile_adds_where_the_time_goes(speed: ModuleType, photos: Callable[..., Path]) -> None:
    found = speed.measure("small/zskt", photos(), 1, CPU, quick=True, profile=True)
    for metrics in found.values():
        assert 0 < metrics["in_networks"] < 1
        assert any(name.startswith("rest: ") for name in metrics)


def test_what_no_operator_took_of_a_step_is_outside_as_is_reading_files(
    speed: ModuleType, photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds are given: a clock's would depend on what else the machine does."""
    timing = importlib.import_module("speed_timing")
    kinds = timing.Look.kinds
    monkeypatch.setattr(timing.Stopwatch, "seconds", lambda watch: 1.0)
    monkeypatch.setattr(timing.Look, "kinds", lambda look: {kind: 0.1 for kind in kinds(look) if kind == "aten::add"})
    found = speed.measure("small/folder", photos(), 3, CPU, quick=True, profile=True)["small/folder/student_step"]
    assert found["over_floor"] == 1.0
    assert found["rest: outside of operators"] == pytest.approx(0.9)
    assert found["in_networks"] == pytest.approx(0.1)
    assert [name for name in found if name.startswith("rest: ")] == ["rest: outside of operators"]


def test_groups_are_chosen_by_name_or_by_either_part(speed: ModuleType) -> None:
    assert speed.chosen_groups([]) == list(speed.GROUPS)
    assert speed.chosen_groups(["pixels", "unet"]) == ["unet/degan", "pixels/resnet50"]
    assert speed.chosen_groups(["small/cgdd", "dafl"]) == ["small/cgdd", "small/dafl", "resnet34-18/dafl"]
    with pytest.raises(ValueError, match="there is no group 'res'; known: small/cgdd, "):
        speed.chosen_groups(["cgdd", "res"])


# The command.


def test_a_run_stops_in_time_and_goes_on_with_what_is_left(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    times_up = iter([False, True, False])

    def measured(group: str, *rest: Any, **options: Any) -> dict[str, dict[str, float]]:
        asked.append(group)
        if next(times_up):
            raise Interrupted("time is up")
        return {f"{group}/update": {"over_floor": 1.0}}

    monkeypatch.setattr(speed, "measure", measured)
    monkeypatch.setattr(speed, "collect", lambda *given: pytest.fail("not all groups are there"))
    words = ["--only", "zskt", "--device", "cpu", "--work", str(tmp_path)]
    assert speed.main(words) == 75
    assert speed.main(words) == 0
    assert asked == ["small/zskt", "resnet34-18/zskt", "resnet34-18/zskt"]
    assert json.loads((tmp_path / "small/zskt.json").read_text())["small/zskt/update"]["peak_memory_mib"] > 0


def test_what_is_there_is_written_with_its_command_rows_and_tables(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ratio(name: str) -> dict[str, float]:
        return {name: 1.05, f"{name}_low": 1.0, f"{name}_high": 1.1}

    groups = {
        "small/cgdd": {
            "small/cgdd/update": {
                **ratio("over_floor"),
                "images_per_second": 99.6,
                "in_networks": 0.9,
                "rest: aten::mm": 0.061,
                "rest: aten::copy_": 0.02,
            }
        },
        "fastestdet/diode": {
            "fastestdet/diode/update": {
                **ratio("over_floor"),
                "images_per_second": 1.5,
                "image_iterations_per_second": 30.0,
            }
        },
        "pixels/resnet50": {"pixels/resnet50/bf16": {**ratio("times_as_fast"), "images_per_second": 5.0}},
        "switches/resnet34-18": {"switches/resnet34-18/channels_last": ratio("times_as_long_without")},
        "agreement/fashion-cgdd": {"agreement/fashion-cgdd/on": {"seconds": 61.2, "steps": 400, "agreement": 0.81}},
    }
    for group, rows in groups.items():
        file = tmp_path / f"{group}.json"
        file.parent.mkdir(exist_ok=True)
        taken = {"seconds": 3.0, "peak_memory_mib": 500.0}
        file.write_text(json.dumps({name: {"metrics": values, **taken} for name, values in rows.items()}))
    written: dict[str, Any] = {}
    monkeypatch.setattr(speed, "write_results", lambda *args, **how: written.update(results=args, how=how))
    monkeypatch.setattr(speed, "write_table", lambda *args: written.update(table=args))
    speed.main(["--collect-only", "--device", "cpu", "--work", str(tmp_path)])
    assert written["results"][:2] == ("speed", "cpu")
    assert list(written["results"][2]) == [name for rows in groups.values() for name in rows]
    assert set(written["how"]["hardware"]["flags"]) >= {"avx512_bf16", "amx_bf16"}
    assert written["table"][:2] == ("results.md", "speed-cpu")
    lines = written["table"][2].splitlines()
    assert "| small/cgdd/update | 1.05 (1.00–1.10) | 99.6 | – | 90 % | aten::mm 6 %, aten::copy_ 2 % | 500 |" in lines
    assert "| fastestdet/diode/update | 1.05 (1.00–1.10) | 1.5 | 30 | – | – | 500 |" in lines
    assert "| pixels/resnet50/bf16 | 1.05 (1.00–1.10) | 5 |" in lines
    assert "| switches/resnet34-18/channels_last | 1.05 (1.00–1.10) |" in lines
    assert "| agreement/fashion-cgdd/on | 61 | 400 | 81 % |" in lines
