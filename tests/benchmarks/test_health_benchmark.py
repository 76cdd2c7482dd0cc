"""The benchmark of health signals: ranks as scipy has them, and which runs they are taken over."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from datafree.data.images import to_image
from datafree.data.visualize import grid
from datafree.health.verdict import SIGNALS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def health() -> ModuleType:
    """benchmarks/health.py."""
    return importlib.import_module("health")


def test_rank_correlation_by_hand(health: ModuleType) -> None:
    assert health.ranks([3.0, 1.0, 3.0, 9.0]) == [2.5, 1.0, 2.5, 4.0]
    assert health.spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert health.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)): here the ranks differ by 1, 1, 1, 1 and 0.
    assert health.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert health.spearman([1, 1, 1], [1, 2, 3]) is None and health.spearman([1, 2], [1, 2]) is None


def test_rank_correlation_is_scipys_with_ties_too(health: ModuleType) -> None:
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    for _ in range(20):
        ours, theirs = torch.randint(0, 6, (2, 15)).float().tolist()
        assert health.spearman(ours, theirs) == pytest.approx(stats.spearmanr(ours, theirs).statistic)


def cell(**series: list[float]) -> dict[str, Any]:
    return {"metrics": {f"{name}@{step}": v for name, values in series.items() for step, v in enumerate(values)}}


def test_runs_are_ranked_at_their_end_and_checkpoints_within_each(health: ModuleType) -> None:
    cells = [
        cell(top1=[0.1, 0.2, 0.3], agreement=[0.9, 0.8, 0.1]),
        cell(top1=[0.1, 0.2, 0.8], agreement=[0.9, 0.8, 0.6]),
        cell(top1=[0.3, 0.2, 0.75], agreement=[0.2, 0.1, 0.5]),
        cell(top1=[0.3, 0.2, 0.1]),
    ]
    assert health.over_runs(cells, "agreement") == (pytest.approx(1), 3)
    assert health.within_runs(cells, "agreement") == pytest.approx((-1 - 1 + 1) / 3)
    assert health.good_range(cells, "agreement", 0.7) == "50.0 % to 60.0 % | –"
    text = health.table(cells, [])
    assert text.count("\n| ") == len(SIGNALS) and text.splitlines()[2].startswith("| Agreement | +1.00 | – | -0.33 |")


def test_verdicts_are_counted_with_what_their_students_came_to(health: ModuleType) -> None:
    cells = [
        cell(top1=[0.8], held_out_class_balance=[0.9]),
        cell(top1=[0.9], held_out_class_balance=[0.95]),
        cell(top1=[0.2], held_out_class_balance=[0.0]),
    ]
    rows = health.verdicts(cells).splitlines()[2:]
    assert rows == ["| healthy | 2 | 80.0 to 90.0 | 85.0 |", "| collapsed | 1 | 20.0 to 20.0 | 20.0 |"]


def test_finished_runs_are_read_with_the_images_of_their_last_picture(health: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "seed3" / "fashion-mnist" / "cgdd"
    (run / "samples").mkdir(parents=True)
    (run / "cell.json").write_text(json.dumps({"metrics": {"top1": 0.5}, "seconds": 1.0, "peak_memory_mib": 1.0}))
    lines = [{"step": 20, "loss": 1.0}, {"step": 20, "agreement": 0.4, "class_balance": 0.7}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    images = torch.rand(8, 3, 28, 28)
    to_image(grid([images, 1 - images])).save(run / "samples" / "000020.png")
    (found,) = health.read_finished([tmp_path])["finished/cgdd"]
    metrics = found["metrics"]
    assert found["seed"] == 3
    assert (metrics["top1@20"], metrics["agreement@20"], metrics["held_out_class_balance@20"]) == (0.5, 0.4, 0.7)
    assert 0.4 < metrics["statistics_distance@20"] < 0.7  # noise, as far from the teacher's data as noise is
    assert 0 < metrics["held_out_feature_diversity@20"] < 0.1
