"""The benchmark of two processes, on small networks."""

import json
from pathlib import Path

import pytest

from benchmark_modules import imported


@pytest.mark.thorough
@pytest.mark.parametrize("row", ["resnet34-18/cgdd/step", "fastestdet/diode/update"])
def test_a_row_is_measured_by_two_processes_and_goes_into_results_and_table(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with imported("wide") as wide:
        wide.run_row(row, tmp_path / "work", 1, quick=True)
        (file,) = (tmp_path / "work").iterdir()
        metrics = json.loads(file.read_text())["metrics"]
        assert metrics["efficiency"] > 0 and metrics["seconds_alone"] > 0
        assert metrics["efficiency_low"] <= metrics["efficiency"] <= metrics["efficiency_high"]
        written: dict[str, object] = {}
        monkeypatch.setattr(wide, "write_results", lambda *args, **given: written.update(results=args, **given))
        monkeypatch.setattr(wide, "write_table", lambda *args: written.update(table=args))
        wide.collect(tmp_path / "work", "command")
        assert row in written["results"][2]  # type: ignore[index]
        assert f"| {row} |" in written["table"][2]  # type: ignore[index]


def test_rows_are_chosen_by_any_part_of_their_names() -> None:
    with imported("wide") as wide:
        assert wide.chosen_rows(["deeplabv3"]) == ["deeplabv3/degan/step", "deeplabv3/degan/update"]
        assert wide.chosen_rows([]) == list(wide.ROWS)
        with pytest.raises(ValueError, match="there is no row 'vgg'; known: resnet34-18/cgdd/step"):
            wide.chosen_rows(["vgg"])
