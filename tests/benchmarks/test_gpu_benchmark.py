"""`benchmarks/gpu.py` before its first minute on a GPU: every branch but the clock."""

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.errors import Interrupted
from datafree.ops import modes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """benchmarks/gpu.py."""
    return importlib.import_module("gpu")


def of(gpu: ModuleType, *names: str) -> Any:
    """The rows of these names, with metrics that were not measured."""
    return [gpu.Row(name=name, measure=lambda stop, name=name: {name: {"within": 1.0}}) for name in names]


def never() -> None:
    return None


def test_one_that_errs_is_beyond_its_tolerance(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousandth on every gradient is too much in float64; a step that is not finite is infinitely far."""
    import gpu_correct

    exact = gpu_correct._learnt
    calls: list[float] = []

    def erring(rig: Any, batch: Any) -> tuple[float, Tensor]:
        loss, gradients = exact(rig, batch)
        calls.append(loss)
        return loss, gradients * (1.001 if len(calls) == 2 else 1.0)

    monkeypatch.setattr(gpu_correct, "_learnt", erring)
    found = gpu_correct.compare("small/noise", lambda name: tmp_path, CPU, "fp64")
    assert found["gradients"] == pytest.approx(1e-3)
    assert gpu.is_wrong(found)
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(1).float().dtype == torch.float32
    assert gpu_correct._apart(torch.tensor([torch.nan]), torch.ones(1)) == float("inf")
    assert gpu_correct._apart(torch.ones(2), torch.ones(1)) == float("inf")


def test_waits_are_those_that_torch_warns_of_within_the_steps(gpu: ModuleType, tmp_path: Path) -> None:
    import gpu_parts
    from speed_rigs import QUICK, make_rig

    modes: list[str] = []
    rig = make_rig(QUICK["small"], "noise", tmp_path, CPU)
    sample = rig.source.sample

    def waiting(n: int) -> Any:
        if modes[-1] == "warn":
            for _ in range(3):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        return sample(n)

    rig.source.sample = waiting
    assert gpu_parts.waits_of(rig, modes.append) == {"waits": 3.0, "most_waits": 3.0}
    assert modes[-1] == "default"


def test_rows_are_done_once_and_a_failure_stops_no_other(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(stop: Any) -> Any:
        raise RuntimeError("no kernel image")

    broken = gpu.Row(name="b", measure=fails)
    assert [gpu.run_row(row, tmp_path, CPU, never) for row in (*of(gpu, "a"), broken, *of(gpu, "c"))] == [
        True,
        False,
        True,
    ]
    assert "FAILED b" in capsys.readouterr().out
    assert gpu.run_row(gpu.Row(name="a", measure=fails), tmp_path, CPU, never)  # from its file
    found = gpu.collect(of(gpu, "a", "b", "c"), tmp_path, CPU, "command")
    assert list(found) == ["a", "c"]
    written = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["a", "c"]
    assert written["rows"][0]["metrics"]["within"]["mean"] == 1.0


def test_the_command_stops_in_time_resumes_and_tells_what_is_wrong(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit status: 75 when time is up, 1 for a row that is wrong or failed, the papers' own, else 0."""
    rows, asked = of(gpu, "a", "b"), []

    def up(stop: Any) -> Any:
        raise Interrupted("time is up")

    def papers(size: str, work: Path, seconds: float) -> int:
        asked.append(size)
        return int(gpu.cells.TIME_UP)

    monkeypatch.setattr(gpu, "rows", lambda device, folder, rounds: rows)
    monkeypatch.setattr(gpu, "run_papers", papers)
    words = ["--device", "cpu", "--work", str(tmp_path), "--max-time", "1h"]
    rows.append(gpu.Row(name="late", measure=up))
    assert gpu.main(words) == gpu.cells.TIME_UP
    assert {file.stem for file in tmp_path.glob("?.json")} == {"a", "b"}
    rows[2] = gpu.Row(name="late", measure=lambda stop: None)  # nothing to tell of this device
    assert gpu.main(words) == 0
    assert not asked
    assert gpu.main([*words, "--papers", "smoke"]) == gpu.cells.TIME_UP
    assert asked == ["smoke"]
    monkeypatch.setattr(gpu, "run_papers", lambda *given: gpu.NO_DATA)
    assert gpu.main([*words, "--papers", "smoke"]) == 0  # that data is missing is told, and no fault of the device
    monkeypatch.setattr(gpu, "run_papers", lambda *given: 1)
    assert gpu.main([*words, "--papers", "smoke"]) == 1
    rows.append(gpu.Row(name="wrong", measure=lambda stop: {"wrong": {"within": 0.0}}))
    assert gpu.main(words) == 1
    assert gpu.main([*words, "--only", "a"]) == 1  # the file says so
    rows[3] = gpu.Row(name="wrong", measure=lambda stop: {"wrong": {"within": 1.0}})
    assert gpu.main(words) == 0  # what was wrong is measured again
    assert gpu.main(["--device", "cpu", "--work", str(tmp_path / "new"), "--max-time", "0s"]) == gpu.cells.TIME_UP
    with pytest.raises(SystemExit):
        gpu.main([*words, "--only", "nothing"])


def test_the_rows_of_a_gpu_are_all_methods_and_groups_that_there_are(gpu: ModuleType, tmp_path: Path) -> None:
    from datafree.sources import SOURCES
    from speed import GROUPS

    names = [row.name for row in gpu.rows(torch.device("cuda"), tmp_path, 1)]
    methods = {name.split("/")[2] for name in names if name.startswith("correct/")}
    assert methods == SOURCES.keys() - {"auto"}  # which chooses among them
    assert {name.removeprefix("speed/") for name in names if name.startswith("speed/")} <= set(GROUPS)
    assert [name for name in names if name.endswith("/fp32")] == names[: len(gpu.GROUPS)]  # first what is most wanted
    assert gpu.chosen(gpu.rows(CPU, tmp_path, 1), ["waits/small"])
    assert all(row.measure(never) is None for row in gpu.chosen(gpu.rows(CPU, tmp_path, 1), ["waits"]))


def test_without_time_the_papers_wait(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.run_papers("smoke", tmp_path, 1.0) == gpu.cells.TIME_UP


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_two_processes_end_with_one_student_near_that_of_one(gpu: ModuleType) -> None:
    import gpu_parts

    found = gpu_parts.several("cpu", 2, quick=True)
    assert found["same"] == 1
    rounded = modes.choose_precision("auto", CPU) == torch.bfloat16  # where the processor computes it
    assert found["apart"] < (1e-2 if rounded else 1e-4)
    assert found["speed_up"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_runs_from_end_to_end_on_the_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main(["--device", "cpu", "--work", str(tmp_path), "--rounds", "1"]) == 0
    names = {row["name"] for row in json.loads((tmp_path / "gpu-cpu.json").read_text())["rows"]}
    assert {name.split("/")[0] for name in names} == {"correct", "batch", "several", "speed"}
