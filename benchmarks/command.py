"""The command line of the benchmarks of methods: run their cells, collect what they left."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from cells import TIME_UP, Cell, read_cells, run_cells, seconds
from measured import seeds_in, with_earlier
from pairs import PairT, Results, Size, chosen_rows, is_known, rows_of, teacher_of
from results import write_results, write_table


@dataclass(frozen=True, kw_only=True)
class Asked(Generic[PairT]):
    """What a command line asks for."""

    benchmark: str
    size_name: str
    size: Size[PairT]
    seeds: list[int]
    rows: list[str]  # PAIR/NAME, with their teachers
    jobs: int
    work: Path
    time: float  # seconds
    collect_only: bool
    one: Cell | None  # in this process
    own: argparse.Namespace  # the benchmark's own options


def make_parser(benchmark: str, description: str | None, sizes: Mapping[str, Size[PairT]]) -> argparse.ArgumentParser:
    """The options that all have; `ask` reads them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(sizes), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[], help="only these (NAME, or PAIR/NAME); default: all")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; with more than one, a thread for each")
    parser.add_argument("--work", type=Path, help=f"default: work/{benchmark}-SIZE")
    parser.add_argument(
        "--max-time", default="1000h", help="stop cleanly after this long (9m, 90s, 2h); run again to go on"
    )
    parser.add_argument("--collect-only", action="store_true", help="only write results and tables from finished cells")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    return parser


def ask(benchmark: str, parser: argparse.ArgumentParser, sizes: Mapping[str, Size[PairT]]) -> Asked[PairT]:
    """Read the command line; exits with status 2 and a line about what is wrong."""
    given = parser.parse_args()
    size = sizes[given.size]
    try:
        time = seconds(given.max_time)
        rows = chosen_rows(size, given.rows)
    except ValueError as error:
        parser.error(str(error))
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: give at least 1")
    return Asked(
        benchmark=benchmark,
        size_name=given.size,
        size=size,
        seeds=given.seeds,
        rows=rows,
        jobs=given.jobs,
        work=given.work or Path("work") / f"{benchmark}-{given.size}",
        time=time,
        collect_only=given.collect_only,
        one=(given.one[0], int(given.one[1])) if given.one else None,
        own=given,
    )


def run(
    asked: Asked[PairT],
    *,
    script: Sequence[str],  # the benchmark's file, and its own options
    missing: Callable[[Sequence[str]], str | None],  # rows -> what they lack
    finished: Callable[[Results], Results],
    table: Callable[[str, Size[PairT], Results], str],  # of a pair
) -> int:
    """Run the cells that are asked for, unless they are only to be collected; collect. Returns the exit status."""
    known = rows_of(asked.size)
    if unknown := [row for row in asked.rows if not is_known(known[row])]:
        print(f"left out, there is no such method: {', '.join(unknown)}", flush=True)
    rows = [row for row in asked.rows if row not in unknown]
    code = 0
    if not asked.collect_only:
        if fault := missing(rows):
            print(f"error: {fault}", file=sys.stderr)
            return 2
        code = run_cells(
            [sys.executable, *script, "--size", asked.size_name, "--work", str(asked.work)],
            [(row, seed) for seed in asked.seeds for row in rows],
            asked.work,
            max_time=asked.time,
            jobs=asked.jobs,
            needs=lambda cell: (
                [] if known[cell[0]].method in ("teacher", "labels") else [(teacher_of(cell[0]), cell[1])]
            ),
            keep_going=True,
        )
        if code == TIME_UP:
            return code
    _collect(asked, finished(read_cells(asked.work, list(known))), table)
    return code


def _collect(asked: Asked[PairT], rows: Results, table: Callable[[str, Size[PairT], Results], str]) -> None:
    """Write the results file and the tables from the cells that are there and from those of the file as it was; the
    smoke size's are only shown. Without a cell the file stays as it is.
    """
    whole = with_earlier(asked.benchmark, asked.size_name, rows)
    text = "\n".join(table(pair, asked.size, whole) for pair in asked.size.pairs)
    if asked.size_name == "smoke":
        print(text)
        return
    command = f"python benchmarks/{asked.benchmark}.py --size {asked.size_name}"
    if rows:
        write_results(asked.benchmark, asked.size_name, whole, command=f"{command} --seeds {seeds_in(whole)}")
    section = f"## {asked.size.heading}\n\n`{command}`."
    write_table("results.md", f"{asked.benchmark}-{asked.size_name}", text, section=section)
