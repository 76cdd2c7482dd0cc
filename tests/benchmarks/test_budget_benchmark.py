"""The benchmark of students by processor minutes: its rows are recipes, its table is of their cells."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def budget() -> Iterator[ModuleType]:
    """benchmarks/budget.py, imported beside its own modules, which are forgotten afterwards."""
    known = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("budget")
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("method", "init"), [("auto", "teacher"), ("auto-random", "random"), ("procedural", "teacher")]
)
def test_a_row_is_a_recipe_of_its_time_and_start(budget: ModuleType, method: str, init: str, tmp_path: Path) -> None:
    recipe = budget.recipe_of(f"fashion/{method}/20", 3, tmp_path)
    assert (recipe.training.time, recipe.training.seed, recipe.student.init) == ("20m", 3, init)
    assert recipe.data is None  # what is scored on is not known to the run


def test_rows_are_every_problem_method_start_and_budget_once(budget: ModuleType) -> None:
    assert len(set(budget.ROWS)) == len(budget.ROWS) == len(budget.PROBLEMS) * 3 * 2 * 3


def test_the_table_has_mean_and_spread_of_the_share_in_percent(budget: ModuleType) -> None:
    cells = [{"metrics": {"relative": share}} for share in (0.5, 0.6)]
    table = budget.table({"cifar10/auto/5": cells, "cifar10/auto/60": cells[:1]})
    assert table.splitlines()[2:] == ["| cifar10 | auto | 55.0 ± 7.1 | not run | 50.0 |"]
