"""The INT8 benchmark: its rows, the images it makes once, its measures and its table."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def int8() -> ModuleType:
    """benchmarks/int8.py."""
    return importlib.import_module("int8")


def test_rows_are_every_network_with_every_source_and_real_images_where_there_are_some(int8: ModuleType) -> None:
    expected = {(name, kind) for name in int8.PROBLEMS for kind in ("noise", "photos", "procedural", "auto")}
    expected |= {(name, "float") for name in ("resnet20", "resnet56", "espnet", "fastestdet")}  # what is scored
    expected |= {(name, "real") for name in ("resnet20", "resnet56", "espnet", "fastestdet")}
    assert {tuple(row.split("/")) for row in int8.ROWS} == expected
    assert len(set(int8.ROWS)) == len(int8.ROWS)


def test_images_are_made_once_for_a_source_and_a_seed(
    int8: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = replace(int8.PROBLEMS["resnet20"], images=3)
    monkeypatch.setattr(type(problem), "network", lambda self: nn.Identity())
    found = [int8.make_images(problem, "noise", seed, tmp_path / f"{seed}.safetensors")[0] for seed in (0, 1)]
    again, _ = int8.make_images(problem, "no such source", 0, tmp_path / "0.safetensors")
    assert found[0].shape == (3, 3, 32, 32)
    assert found[0].dtype == torch.uint8
    assert torch.equal(found[0], again)
    assert not torch.equal(*found)


def test_relative_error_is_the_length_of_the_difference_over_that_of_the_float_answers(int8: ModuleType) -> None:
    ours, theirs = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 5.0]])  # lengths: of (3, -1) and of 5
    assert int8.relative_error(ours, theirs) == pytest.approx(10**0.5 / 5)


def test_the_table_has_mean_and_spread_and_no_score_where_nothing_is_labelled(int8: ModuleType) -> None:
    cells = [
        {"metrics": {"top1": score, "agreement": 0.98, "error": 0.05, "minutes": 0.5, "quantising": 0.1}}
        for score in (0.8, 0.81)
    ]
    bare = [{"metrics": {"agreement": 0.9, "error": 0.1, "minutes": 0.0, "quantising": 0.1}}]
    table = int8.table({"resnet20/auto": cells, "efficientnet-lite0/noise": bare})
    assert table.splitlines()[2:] == [
        "| resnet20 | auto | 80.50 ± 0.71 | 98.00 ± 0.00 | 0.050 ± 0.000 | 0.5 ± 0.0 |",
        "| efficientnet-lite0 | noise | – | 90.00 | 0.100 | 0.0 |",
    ]
