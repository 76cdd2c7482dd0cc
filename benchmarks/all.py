"""What the tables of docs/results.md cost, what of them is left, and the next of it, by what it decides.

    python benchmarks/all.py --plan                      # every table: processor hours done and left, and what is next
    python benchmarks/all.py --max-time 2h --jobs 2     # the next pieces; the same command resumes

A cell is done if its table's results file or its work folder (WORK/BENCHMARK-SIZE) holds it. Cells go by the claims
(claims.py) that they serve: first claims that are not decided, then those that are level, then the others; of these the
one whose missing cells cost least, teachers and generators that must be trained for them included. What serves no claim
comes last, rows without any seed first. Every piece is a call of the benchmark's own script, which runs each cell once
and writes results file and tables; at the end docs/evidence.md is written.

A cell's cost is its row's: mean processor minutes, of older rows wall minutes; of rows never measured a guess (`guess`
of its table, tables.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import evidence
from cells import LEAST, TIME_UP, is_done, seconds
from claims import CLAIMS
from tables import SMOKE, TABLES, Table

HERE = Path(__file__).resolve().parent
TOGETHER = 60  # minutes
Key = tuple[str, str, int]  # table, row, seed


@final
@dataclass(frozen=True, kw_only=True)
class Question:
    """What a claim still lacks in one table."""

    rank: int  # 0: it is not decided, 1: level, or to be asked at another size, 2: decided
    cells: tuple[Key, ...]  # in the order in which they are run


@final
@dataclass(frozen=True, kw_only=True)
class Piece:
    """One call of a benchmark's script."""

    table: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]


@final
class State:
    """What is done of some tables, and what a cell costs."""

    def __init__(self, tables: dict[str, Table], work: Path) -> None:
        self.tables, self.work = tables, work
        self._measured = {name: evidence.rows_of_table(name) for name in tables}

    def folder(self, table: str) -> Path:
        return self.work / table

    def is_kept(self, key: Key) -> bool:
        """Whether the work folder holds a cell, and so the networks that others use."""
        return is_done(self.folder(key[0]), (key[1], key[2]))

    def is_done(self, key: Key) -> bool:
        table, row, seed = key
        return self.is_kept(key) or any(cell["seed"] == seed for cell in self._measured[table].get(row, []))

    def minutes(self, key: Key) -> float:
        """Of one cell."""
        cells = self._measured[key[0]].get(key[1], [])
        counted = [cell["processor_seconds"] for cell in cells if "processor_seconds" in cell]
        known = counted or [cell["seconds"] for cell in cells]
        return sum(known) / len(known) / 60 if known else self.tables[key[0]].guess(key[1])

    def is_guessed(self, key: Key) -> bool:
        return not self._measured[key[0]].get(key[1])

    def wanted(self, table: str) -> list[Key]:
        """All cells of a table."""
        return [(table, row, seed) for row, count in self.tables[table].rows.items() for seed in range(count)]

    def with_needs(self, keys: Iterable[Key]) -> tuple[Key, ...]:
        """Cells after those whose networks they use, as far as the work folder lacks these."""
        found: dict[Key, None] = {}
        for table, row, seed in keys:
            used = [(table, other, seed) for other in self.tables[table].needs(row)]
            found |= dict.fromkeys(key for key in used if not self.is_kept(key))
            found[table, row, seed] = None
        return tuple(found)

    def left(self, table: str) -> tuple[Key, ...]:
        return self.with_needs(key for key in self.wanted(table) if not self.is_done(key))


# What comes next.


def questions(state: State) -> list[Question]:
    """What each claim still lacks in each of its tables that are asked for."""
    ranks = {evidence.OPEN: 0, evidence.LEVEL: 1}
    found = []
    for claim in CLAIMS:
        rank = ranks.get(evidence.find(claim).verdict, 2)
        for finding in evidence.findings(claim):
            if finding.table not in state.tables:
                continue
            keys = [(finding.table, name, seed) for seed in evidence.SEEDS for name in finding.names]
            missing = state.with_needs(key for key in keys if not state.is_done(key))
            if missing:
                found.append(Question(rank=rank, cells=missing))
                rank = max(rank, 1)  # a dearer table answers the same claim again
    for name, table in state.tables.items():
        for rows in table.asks:
            missing = state.with_needs(key for row in rows if not state.is_done(key := (name, row, 0)))
            found += [Question(rank=1, cells=missing)] if missing else []
    return found


def by_decisions(asked: Sequence[Question], cost: Callable[[Key], float]) -> list[Key]:
    """The cells of all questions: by rank, then the question that costs least beside what is chosen already."""
    chosen: dict[Key, None] = {}
    waiting = list(asked)
    while waiting:
        costs = [sum(cost(key) for key in question.cells if key not in chosen) for question in waiting]
        best = min(range(len(waiting)), key=lambda index: (waiting[index].rank, costs[index]))
        chosen |= dict.fromkeys(waiting.pop(best).cells)
    return list(chosen)


def in_order(state: State) -> list[Key]:
    """All cells that are left: those of claims, then the others, rows without any seed first."""
    chosen = dict.fromkeys(by_decisions(questions(state), state.minutes))
    others = [key for table in state.tables for key in state.wanted(table) if not state.is_done(key)]
    started = {key[:2] for table in state.tables for key in state.wanted(table) if state.is_done(key)}
    return list(chosen | dict.fromkeys(state.with_needs(sorted(others, key=lambda key: key[:2] in started))))


def pieces(keys: Sequence[Key], cost: Callable[[Key], float]) -> list[Piece]:
    """Calls that run these cells and no others but those that they use: neighbours of one table together, up to the
    first that makes it `TOGETHER` minutes. (Within a call the script's own order holds.)
    """
    groups: list[list[Key]] = []
    for key in keys:
        fits = groups and groups[-1][0][0] == key[0] and sum(map(cost, groups[-1])) < TOGETHER
        if fits:
            groups[-1].append(key)
        else:
            groups.append([key])
    return [piece for group in groups for piece in _calls(group)]


def _calls(keys: Sequence[Key]) -> list[Piece]:
    """Cells of one table: a call for each set of rows, with all seeds that have just these."""
    by_seed: dict[int, tuple[str, ...]] = {}
    for _, row, seed in keys:
        by_seed[seed] = (*by_seed.get(seed, ()), row)
    by_rows: dict[tuple[str, ...], tuple[int, ...]] = {}
    for seed, rows in by_seed.items():
        by_rows[rows] = (*by_rows.get(rows, ()), seed)
    return [Piece(table=keys[0][0], rows=rows, seeds=seeds) for rows, seeds in by_rows.items()]


# Showing and running.


def plan(state: State) -> str:
    """Markdown: the tables, and what comes next."""

    def hours(keys: Iterable[Key]) -> float:
        return sum(map(state.minutes, keys)) / 60

    lines = ["| table | cells | done | hours done | left | hours left | of it guessed |", "|---" * 7 + "|"]
    done_hours = left_hours = 0.0
    for table in state.tables:
        wanted, left = state.wanted(table), state.left(table)
        done = [key for key in wanted if state.is_done(key)]
        guessed = hours(key for key in left if state.is_guessed(key))
        done_hours, left_hours = done_hours + hours(done), left_hours + hours(left)
        lines.append(
            f"| {table} | {len(wanted)} | {len(done)} | {hours(done):.1f} | {len(wanted) - len(done)} "
            f"| {hours(left):.1f} | {guessed:.1f} |"
        )
    lines += [f"| all | | | {done_hours:.1f} | | {left_hours:.1f} | |", ""]
    lines += ["Hours are the processor's; hours left include teachers and generators that no work folder holds.", ""]
    following = pieces(in_order(state), state.minutes)
    lines += [f"next ({len(following)} pieces):" if following else "nothing is left", ""]
    for piece in following[:10]:
        of_piece = [(piece.table, row, seed) for row in piece.rows for seed in piece.seeds]
        lines.append(f"- {hours(of_piece):.1f} h: {' '.join(words(piece))}")
    return "\n".join(lines) + "\n"


def words(piece: Piece) -> list[str]:
    """The script of a piece and what it is asked for."""
    benchmark, _, size = piece.table.rpartition("-")
    sized = [] if benchmark == "budget" else ["--size", size]  # it has one
    return [f"{benchmark}.py", *sized, "--rows", *piece.rows, "--seeds", *map(str, piece.seeds)]


def run(state: State, max_time: float, jobs: int) -> int:
    """Run the pieces in their order; the exit status of the first that failed, TIME_UP where time was up."""
    began = time.monotonic()
    failed = 0
    for piece in pieces(in_order(state), state.minutes):
        remaining = max_time - (time.monotonic() - began)
        if remaining < LEAST:
            print("time is up; the same command resumes", flush=True)
            return failed or TIME_UP
        script, *asked = words(piece)
        command = [sys.executable, str(HERE / script), *asked, "--work", str(state.folder(piece.table))]
        print(" ".join([script, *asked]), flush=True)
        limits = ["--jobs", str(jobs), "--max-time", f"{remaining:.0f}s"]
        code = subprocess.run([*command, *limits], check=False).returncode
        if code:
            subprocess.run([*command, "--collect-only"], check=False)  # the cells that were done before
        if code == TIME_UP:
            return failed or TIME_UP
        if code:
            print(f"{script}: failed with exit status {code}", flush=True)
            failed = failed or code
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="store_true", help="only say what is done and left, and what it costs")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), help="only these (BENCHMARK-SIZE)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; with more than one, a thread for each")
    parser.add_argument("--work", type=Path, default=Path("work"), help="of the tables' work folders")
    parser.add_argument("--max-time", default="1000h", help="stop cleanly after this long (90s, 9m, 2h)")
    given = parser.parse_args()
    known = {**TABLES, **SMOKE}
    if wrong := [name for name in given.tables if name not in known]:
        parser.error(f"there is no table {wrong[0]!r}; known: {', '.join(known)}")
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: give at least 1")
    try:
        limit = seconds(given.max_time)
    except ValueError as error:
        parser.error(str(error))
    state = State({name: known[name] for name in given.tables}, given.work)
    if given.plan:
        print(plan(state), end="")
        return 0
    code = run(state, limit, given.jobs)
    if set(given.tables) - set(SMOKE):
        evidence.write()
    return code


if __name__ == "__main__":
    sys.exit(main())
