"""The benchmark of two processes, on small networks."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch


@pytest.mark.thorough
@pytest.mark.parametrize("row", ["resnet34-18/cgdd/step", "fastestdet/diode/update"])
def test_a_row_is_measured_by_two_processes_and_goes_into_results_and_table(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = importlib.import_module("wide")
    wide.run_row(row, tmp_path / "work", 1, quick=True)
    (file,) = (tmp_path / "work").iterdir()
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["seconds_alone"] > 0
    for way in wide.WAYS:
        assert 0 < metrics[f"{way}_low"] <= metrics[way] <= metrics[f"{way}_high"]
        assert metrics[f"{way}_processor"] > 0
    written: dict[str, object] = {}
    monkeypatch.setattr(wide, "write_results", lambda *args, **given: written.update(results=args, **given))
    monkeypatch.setattr(wide, "write_table", lambda *args: written.update(table=args))
    wide.collect(tmp_path / "work", "command")
    assert row in written["results"][2]  # type: ignore[index]
    assert f"| {row} |" in written["table"][2]  # type: ignore[index]


@pytest.mark.thorough
def test_curves_are_compared_by_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = importlib.import_module("wide")
    wide.run_row("curves", tmp_path / "work", 1, quick=True)
    written: dict[str, str] = {}
    monkeypatch.setattr(wide, "write_results", lambda *args, **given: None)
    monkeypatch.setattr(wide, "write_table", lambda page, name, table: written.update({name: table}))
    wide.collect(tmp_path / "work", "command")
    metrics = json.loads((tmp_path / "work" / "curves.json").read_text())["metrics"]
    assert metrics["spread"] > 0 and f"{metrics['apart']:.3f}" in written["wide_curves"]


def test_curves_are_as_far_apart_as_their_means_over_seeds_in_logarithms() -> None:
    """One process: losses e^0 and e^2, mean e^1, variance 2; two: e^1 and e^1, or e^3 and e^3 on the second line."""
    curves = importlib.import_module("wide_curves")
    found = curves.compared(torch.tensor([[[0.0, 0.0], [2.0, 2.0]], [[1.0, 3.0], [1.0, 3.0]]]).double().exp())
    assert found["apart"] == pytest.approx(2**0.5)  # of 0 and 2
    assert found["spread"] == pytest.approx(1.0)  # of variances 2, 2, 0, 0
    assert found["expected"] == pytest.approx(1.0)
    assert found["last_loss_two"] == pytest.approx(math.e**3)


def test_efficiency_counts_the_slower_by_the_clock_and_both_by_the_processor() -> None:
    wide = importlib.import_module("wide")
    first = {"alone": [(4.0, 4.0)], "half_alone": [(2.2, 2.2)], **{way: [(2.0, 1.5)] for way in wide.WAYS}}
    second = {"alone": [(0.0, 0.0)], "half_alone": [(0.0, 0.0)], **{way: [(2.5, 2.5)] for way in wide.WAYS}}
    found = wide.compared([first, second])
    assert found["efficiency"] == found["ceiling"] == pytest.approx(4 / 2.5 / 2)
    assert found["efficiency_processor"] == pytest.approx(4 / (1.5 + 2.5))
    assert found["efficiency_same_part"] == pytest.approx(2.2 / 2.5)


def test_rows_are_chosen_by_any_part_of_their_names() -> None:
    wide = importlib.import_module("wide")
    assert wide.chosen_rows(["deeplabv3"]) == ["deeplabv3/degan/step", "deeplabv3/degan/update"]
    assert wide.chosen_rows([]) == list(wide.ROWS)
    with pytest.raises(ValueError, match="there is no row 'vgg'; known: resnet34-18/cgdd/step"):
        wide.chosen_rows(["vgg"])
