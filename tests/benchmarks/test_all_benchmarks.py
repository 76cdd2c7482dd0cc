"""What is left of the tables: what it costs, in which order it is run, and a real piece of it."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def everything() -> ModuleType:
    """benchmarks/all.py."""
    return importlib.import_module("all")


Make = Callable[..., Any]


@pytest.fixture
def make(everything: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A state of one table "t-cpu" whose students a, b, c and d use a teacher; `measured`: row -> seeds."""

    def made(measured: dict[str, list[int]], claims: list[tuple[str, str]], **guesses: float) -> Any:
        rows = {
            row: [
                {"seed": s, "metrics": {"miou": 0.01 * s}, "seconds": 600.0, "processor_seconds": 300.0} for s in seeds
            ]
            for row, seeds in measured.items()
        }
        evidence, claim = importlib.import_module("evidence"), importlib.import_module("claims").Claim
        asked = [
            claim(text="", source="", tables=("t-cpu",), metric="miou", row=row, than=than) for row, than in claims
        ]
        monkeypatch.setattr(evidence, "rows_of_table", lambda table: rows)
        monkeypatch.setattr(everything, "CLAIMS", asked)
        table = importlib.import_module("tables").Table(
            rows=dict.fromkeys(("teacher", "a", "b", "c", "d"), 3),
            needs=lambda row: [] if row == "teacher" else ["teacher"],
            guess=lambda row: guesses.get(row, 1.0),
        )
        return everything.State({"t-cpu": table}, tmp_path)

    return made


def keep(state: Any, row: str, seed: int) -> None:
    """A cell in the work folder."""
    folder = state.folder("t-cpu") / f"seed{seed}" / row
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text("{}")


# The order, worked by hand.


def test_the_cheapest_undecided_claim_comes_first_and_what_it_has_run_is_free_to_the_next(
    everything: ModuleType,
) -> None:
    """A: 10 + 30. B: 10 + 50. C: 50 + 5. After A, B costs 50 and C 55; after B, C costs 5. D is level."""
    cost = {"a": 10.0, "b": 30.0, "c": 50.0, "d": 5.0, "e": 1.0}
    question = everything.Question

    def key(row: str) -> tuple[str, str, int]:
        return ("t-cpu", row, 0)

    asked = [
        question(rank=1, cells=(key("e"),)),  # D
        question(rank=0, cells=(key("c"), key("d"))),  # C
        question(rank=0, cells=(key("a"), key("c"))),  # B
        question(rank=0, cells=(key("a"), key("b"))),  # A
    ]
    found = everything.by_decisions(asked, lambda cell: cost[cell[1]])
    assert [row for _, row, _ in found] == ["a", "b", "c", "d", "e"]


def test_claims_that_are_not_decided_come_before_level_ones_and_before_what_serves_none(
    everything: ModuleType, make: Make
) -> None:
    """a and b have three seeds and are equal: level, and nothing is missing. c has one seed, so c against a is open."""
    state = make({"teacher": [0, 1, 2], "a": [0, 1, 2], "b": [0, 1, 2], "c": [0]}, [("a", "b"), ("c", "a")])
    keys = everything.in_order(state)
    assert keys[:4] == [("t-cpu", row, seed) for seed in (1, 2) for row in ("teacher", "c")]  # no work folder has one
    rest = [("teacher", 0), ("d", 0), ("d", 1), ("d", 2)]  # those of seeds 1 and 2 have their teachers by then
    assert keys[4:] == [("t-cpu", row, seed) for row, seed in rest]


def test_a_teacher_that_the_work_folder_holds_is_not_asked_for_again(everything: ModuleType, make: Make) -> None:
    state = make({"teacher": [0, 1, 2], "a": [0, 1, 2], "b": [0]}, [("a", "b")])
    keep(state, "teacher", 1)
    keep(state, "b", 2)  # measured, and not yet collected
    assert [question.cells for question in everything.questions(state)] == [(("t-cpu", "b", 1),)]


def test_a_claim_of_two_tables_asks_the_dearer_one_later(
    everything: ModuleType, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make({}, [("a", "b")])
    state.tables["t-long"] = state.tables["t-cpu"]
    state._measured["t-long"] = {}
    claim = everything.CLAIMS[0]
    monkeypatch.setattr(everything, "CLAIMS", [type(claim)(**{**vars(claim), "tables": ("t-cpu", "t-long")})])
    assert [(q.rank, q.cells[0][0]) for q in everything.questions(state)] == [(0, "t-cpu"), (1, "t-long")]


# Calls.


def test_neighbours_of_one_table_are_one_call_for_each_set_of_rows_up_to_an_hour(everything: ModuleType) -> None:
    keys = [("t-cpu", "a", 0), ("t-cpu", "b", 1), ("t-cpu", "b", 0), ("t-cpu", "a", 2), ("t-cpu", "b", 2)]
    keys += [("u-cpu", "a", 0), ("t-cpu", "c", 0)]
    found = [(p.table, p.rows, p.seeds) for p in everything.pieces(keys, lambda key: 5.0)]
    assert found == [
        ("t-cpu", ("a", "b"), (0, 2)),
        ("t-cpu", ("b",), (1,)),
        ("u-cpu", ("a",), (0,)),
        ("t-cpu", ("c",), (0,)),
    ]
    assert len(everything.pieces(keys[:4], lambda key: 60.0)) == 4


def test_a_cell_costs_its_rows_processor_minutes_or_else_a_guess(everything: ModuleType, make: Make) -> None:
    state = make({"a": [0]}, [], b=7.0)
    assert state.minutes(("t-cpu", "a", 1)) == 5.0 and not state.is_guessed(("t-cpu", "a", 1))
    assert state.minutes(("t-cpu", "b", 1)) == 7.0 and state.is_guessed(("t-cpu", "b", 1))


def test_the_plan_adds_up_what_is_done_and_left(everything: ModuleType, make: Make) -> None:
    """Of 15 cells 7 are done, 5 minutes each: teacher and a, and one of b."""
    state = make({"teacher": [0, 1, 2], "a": [0, 1, 2], "b": [0]}, [("a", "b")], c=60.0, d=120.0)
    text = everything.plan(state)
    # left: b twice at 5 minutes, c and d three times at 1 and 2 hours, and three teachers again at 5 minutes
    assert f"| t-cpu | 15 | 7 | {35 / 60:.1f} | 8 | {(10 + 180 + 360 + 15) / 60:.1f} | 9.0 |" in text
    assert "- 0.3 h: t.py --size cpu --rows teacher b --seeds 1 2" in text


def test_every_table_has_rows_that_its_benchmark_takes_and_a_guess_for_each(everything: ModuleType) -> None:
    tables = importlib.import_module("tables")
    for name, table in tables.TABLES.items():
        assert tables.claimed(name) <= set(table.rows)
        assert all(table.guess(row) > 0 and set(table.needs(row)) <= set(table.rows) for row in table.rows)
        assert {row for rows in table.asks for row in rows} <= set(table.rows)
    long = tables.camvid("long")
    assert long.asks == ((
        "kd_proxy", "schedule/degan_weighted_1000", "schedule/degan_weighted_mixed_1000",
        "schedule/degan_weighted_3000", "schedule/degan_weighted_mixed_3000", "degan_weighted", "degan_weighted_mixed",
    ),)  # fmt: skip
    assert long.guess("degan_weighted") == pytest.approx(2 * 6 + 5 * 9.4)
    assert long.guess("schedule/degan_weighted_3000") == pytest.approx(2 * 6 + 5 * 3)
    assert long.guess("schedule/degan_weighted_mixed_3000") == long.guess("kd_proxy") == pytest.approx(12)


def test_an_unknown_table_and_a_wrong_time_are_one_line(
    everything: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--tables", "x"], "there is no table 'x'; known: camvid-cpu"),
        (["--max-time", "x"], "9m or 2h"),
    ):
        monkeypatch.setattr(sys, "argv", ["all.py", *words])
        with pytest.raises(SystemExit, match="2"):
            everything.main()
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_piece_runs_stops_with_its_time_and_is_not_run_again(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            str(BENCHMARKS / "all.py"),
            "--tables",
            "classification-smoke",
            "--work",
            str(tmp_path),
        ]
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False)

    assert "| classification-smoke | 3 | 0 | 0.0 | 3 |" in run("--plan").stdout
    assert run("--max-time", "1s").returncode == 75
    done = run("--jobs", "2", "--max-time", "9m")
    assert done.returncode == 0, done.stderr
    cells = list(tmp_path.glob("classification-smoke/seed0/example/*/cell.json"))
    assert {path.parent.name for path in cells} == {"teacher", "noise", "kd_real"}
    assert all(json.loads(path.read_text())["processor_seconds"] > 0 for path in cells)
    again = run("--plan").stdout
    assert "| classification-smoke | 3 | 3 | 0.0 | 0 | 0.0 |" in again and "nothing is left" in again
