"""The benchmark of growth: what a cell measures, and what is written of it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def growth() -> ModuleType:
    """benchmarks/growth.py."""
    return importlib.import_module("growth")


@pytest.mark.thorough
def test_a_run_is_traced_from_its_warm_up_to_its_last_step(growth: ModuleType, tmp_path: Path) -> None:
    cell = growth.run_cell("steps/cgdd/20", "run", tmp_path / "run")
    steps = [point[0] for point in cell["trace"]]
    assert steps[-2:] == [20, 20] and steps[:-1] == sorted(set(steps))
    seconds = [point[1] for point in cell["trace"]]
    assert seconds == sorted(seconds) and seconds[-1] == cell["metrics"]["processor_seconds"]
    weights = (tmp_path / "run" / "student.safetensors").stat().st_size / 2**20
    assert cell["metrics"]["disk_mib"] > weights
    assert round(cell["metrics"]["peak_mib"], 1) >= cell["metrics"]["start_mib"] > 10  # which is rounded


@pytest.mark.slow
def test_a_data_set_is_made_checked_and_learnt_from(growth: ModuleType, tmp_path: Path) -> None:
    cells = {what: growth.run_cell("images/300", what, tmp_path / "set") for what in ("make", "check", "learn")}
    assert cells["make"]["trace"][-1][0] >= 300
    assert len(list((tmp_path / "set" / "data" / "images").rglob("*.png"))) >= 300
    assert cells["check"]["metrics"]["verify_seconds"] > 0
    assert (tmp_path / "set-run" / "student.safetensors").exists()


def test_drawings_are_whole_files_whose_axis_begins_at_nothing(
    growth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    monkeypatch.setattr(growth, "HERE", tmp_path / "benchmarks")
    growth.picture("images", "images", [[256, 1.0, 700.0], [512, 2.0, 710.0], [1024, 4.0, 705.0]])
    for what, most in (("time", "4"), ("memory", "800")):
        drawn = ElementTree.parse(tmp_path / "docs" / "pictures" / f"growth-images-{what}.svg").getroot()
        ticks = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "tick"]
        assert ticks[0] == "0" and ticks[-1] == most


def test_a_row_says_what_it_is_about(growth: ModuleType) -> None:
    metrics = {"processor_seconds": 120.0, "start_mib": 700.4, "peak_mib": 800.2, "disk_mib": 3.0}
    lines = growth.table({"steps/cgdd/10000": {"metrics": metrics}}).splitlines()
    assert lines[2].startswith("| 10,000 steps of cgdd | 2.0 | 700 | 800 | 3 |")
