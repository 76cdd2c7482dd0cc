"""What benchmarks measure is kept: seeds, processor time, and what was measured before."""

import importlib
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from datafree.errors import Interrupted

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/measured.py, with an empty folder of results."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(importlib.import_module("results"), "HERE", tmp_path)
    return importlib.import_module("measured")


def cell(seed: int, miou: float, **more: Any) -> dict[str, Any]:
    return {"seed": seed, "metrics": {"miou": miou}, "seconds": 60.0, "peak_memory_mib": 10.0, "commit": "a", **more}


def write(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    path = importlib.import_module("results").write_results("camvid", "cpu", rows, command="python x.py --seeds 0 1 2")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


# Seeds.


def test_a_results_file_is_read_back_as_the_cells_that_were_written(measured: ModuleType) -> None:
    cells = {"noise": [cell(0, 0.1, processor_seconds=30.0), cell(2, 0.3)]}
    content = write(cells)
    assert content["rows"][0]["seeds"] == [0, 2]
    assert content["rows"][0]["processor_seconds"] == [30.0, None]
    first, second = measured.measured_rows("camvid", "cpu")["noise"]
    assert (first["seed"], first["metrics"], first["processor_seconds"]) == (0, {"miou": 0.1}, 30.0)
    assert (second["seed"], second["metrics"], "processor_seconds" in second) == (2, {"miou": 0.3}, False)


@pytest.mark.parametrize(
    ("name", "values", "seeds"),
    [
        ("p/noise", {"top1": [0.1, 0.2, 0.3]}, [4, 5, 7]),  # as many as the command has
        ("p/some", {"top1": [0.3, 0.2], "relative": [0.6, 0.5]}, [4, 7]),  # teachers of 0.5 and of 0.4
        ("p/few", {"top1": [0.3]}, [4]),  # nothing tells: the first
    ],
)
def test_seeds_of_an_old_row_are_the_commands_or_those_whose_teachers_fit(
    measured: ModuleType, name: str, values: dict[str, list[float]], seeds: list[int]
) -> None:
    teacher = {"name": "p/teacher", "metrics": {"top1": {"values": [0.5, 0.8, 0.4]}}}
    row = {"name": name, "metrics": {metric: {"values": found} for metric, found in values.items()}}
    content = {"command": "python x.py --seeds 4 5 7 --finished WORK", "rows": [teacher, row]}
    assert measured.seeds_of(content, row) == seeds


def test_seeds_of_the_committed_files_are_known(measured: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """BCCD's `kd_real` has two of three: its shares of the teacher's AP50 name the first and the third."""
    monkeypatch.undo()
    found = measured.measured_rows("detection", "cpu")
    if len(found["bccd/kd_real"]) == 2:
        assert [cell["seed"] for cell in found["bccd/kd_real"]] == [0, 2]
    assert {cell["seed"] for cell in found["bccd/onebox_fp"]} >= {0, 1, 2}


# What was measured before.


def test_what_was_measured_before_stays_until_it_is_measured_again(measured: ModuleType) -> None:
    head = {key: write({"old": [cell(0, 0.1), cell(1, 0.2)]})[key] for key in ("date", "hardware", "versions")}
    merged = measured.with_earlier("camvid", "cpu", {"old": [cell(1, 0.9, commit="b")], "new": [cell(0, 0.5)]})
    assert [(c["seed"], c["metrics"]["miou"]) for c in merged["old"]] == [(0, 0.1), (1, 0.9)]
    content = write(merged)
    assert content["earlier"] == [head]
    old, new = sorted(content["rows"], key=lambda row: str(row["name"]), reverse=True)
    assert (old["commits"], old["metrics"]["miou"]["values"]) == (["a", "b"], [0.1, 0.9])
    assert (new["commits"], new["seeds"]) == (["a"], [0])
    assert measured.seeds_in(merged) == "0 1"


# Processor time.


def busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_cell_counts_processor_seconds_over_its_pieces_and_no_waiting(tmp_path: Path) -> None:
    cells = importlib.import_module("cells")
    if importlib.import_module("torch").cuda.is_available():
        pytest.skip("on a GPU only wall time is counted")

    def interrupted(stop: Any) -> dict[str, float]:
        busy(0.1)
        raise Interrupted("time is up")

    def waiting(stop: Any) -> dict[str, float]:
        busy(0.1)
        time.sleep(0.6)
        return {"miou": 0.5}

    assert cells.measure(("a", 0), tmp_path, 10.0, interrupted) == 75
    assert cells.measure(("a", 0), tmp_path, 10.0, waiting) == 0
    found = json.loads((tmp_path / "seed0" / "a" / "cell.json").read_text())
    assert 0.2 - 0.03 <= found["processor_seconds"] <= found["seconds"] - 0.5


def test_a_piece_that_is_killed_has_been_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = importlib.import_module("cells")
    monkeypatch.setattr(cells, "SAVED_EVERY", 0.05)

    def killed(stop: Any) -> dict[str, float]:
        busy(0.3)
        assert stop() is None
        raise KeyboardInterrupt  # which nothing in the cell's way sees

    with pytest.raises(KeyboardInterrupt):
        cells.measure(("a", 0), tmp_path, 10.0, killed)
    assert cells.measure(("a", 0), tmp_path, 10.0, lambda stop: {"miou": 0.5}) == 0
    found = json.loads((tmp_path / "seed0" / "a" / "cell.json").read_text())
    assert found["seconds"] >= 0.3 - 0.03


def test_a_cell_whose_earlier_piece_counted_no_processor_time_says_nothing_of_it(tmp_path: Path) -> None:
    cells = importlib.import_module("cells")
    clock = tmp_path / "seed0" / "a" / "seconds.json"
    clock.parent.mkdir(parents=True)
    clock.write_text("600.0")  # as older versions left it
    assert cells.measure(("a", 0), tmp_path, 10.0, lambda stop: {"miou": 0.5}) == 0
    found = json.loads((clock.parent / "cell.json").read_text())
    assert found["seconds"] > 600 and "processor_seconds" not in found


def test_tables_show_processor_minutes_and_mark_those_on_the_wall() -> None:
    cells = importlib.import_module("cells")
    assert cells.minutes([cell(0, 0.1), cell(1, 0.1)]) == "1.0 wall"
    assert cells.minutes([cell(0, 0.1, processor_seconds=30.0), cell(1, 0.1)]) == "0.5"
    assert cells.minutes([]) == "–"
