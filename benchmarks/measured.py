"""Results files read back: the cells of each row, with the seeds that they were measured for.

A work folder is lost sooner than its results file. So what a file of `benchmarks/results/` holds stays in it until the
same row and seed are measured again: `with_earlier` puts what was measured before beside what a work folder holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import results
from pairs import Results

SHARES = {"relative": "top1", "relative_ap50": "ap50"}  # a student's score over its teacher's -> that score


def read_results(benchmark: str, size: str) -> dict[str, Any] | None:
    """The content of a results file; None where there is none."""
    path = results.HERE / "results" / f"{benchmark}-{size}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measured_rows(benchmark: str, size: str) -> Results:
    """What a results file holds, as `cells.read_cells` has it: row -> {seed, metrics, seconds, ...} for each seed."""
    content = read_results(benchmark, size)
    return {} if content is None else {row["name"]: _cells(content, row) for row in content["rows"]}


def with_earlier(benchmark: str, size: str, rows: Results) -> Results:
    """The cells of `rows` and, of rows and seeds that are not among them, those of the results file."""
    found: Results = dict(rows)
    for name, cells in measured_rows(benchmark, size).items():
        again = {cell["seed"] for cell in rows.get(name, [])}
        kept = [cell for cell in cells if cell["seed"] not in again]
        found[name] = sorted([*kept, *rows.get(name, [])], key=lambda cell: int(cell["seed"]))
    return found


def seeds_in(rows: Results) -> str:
    """All seeds of some rows, as a command names them."""
    return " ".join(map(str, sorted({cell["seed"] for cells in rows.values() for cell in cells})))


def seeds_asked(content: Mapping[str, Any]) -> list[int]:
    """The seeds of the command that wrote a results file; empty where it names none."""
    words = re.search(r"--seeds((?: \d+)+)", content["command"])
    return [int(word) for word in words[1].split()] if words else []


def seeds_of(content: Mapping[str, Any], row: Mapping[str, Any]) -> list[int]:
    """The seeds of a row's values. Files older than the key `seeds`: those of the command.

    Where an old row has fewer values than that, its seeds are those whose teacher fits its shares of the teacher's
    score, and else the first ones, in whose order benchmarks run.
    """
    if "seeds" in row:
        return list(row["seeds"])
    count = len(next(iter(row["metrics"].values()))["values"])
    asked = seeds_asked(content) or list(range(count))
    return asked if count == len(asked) else _seeds_of_teachers(content, row, asked) or asked[:count]


def _seeds_of_teachers(content: Mapping[str, Any], row: Mapping[str, Any], asked: list[int]) -> list[int] | None:
    """The seeds whose teacher's score is this row's score over its share, if that names one seed for each value."""
    share = next((name for name in SHARES if name in row["metrics"]), None)
    teacher = row["name"].rpartition("/")[0] + "/teacher"
    known = next((other for other in content["rows"] if other["name"] == teacher), None)
    if share is None or known is None or len(known["metrics"][SHARES[share]]["values"]) != len(asked):
        return None
    scores = known["metrics"][SHARES[share]]["values"]
    found = []
    for score, part in zip(row["metrics"][SHARES[share]]["values"], row["metrics"][share]["values"], strict=True):
        fits = [seed for seed, value in zip(asked, scores, strict=True) if abs(score - part * value) < 1e-5]
        found += fits if len(fits) == 1 else []
    return found if len(set(found)) == len(row["metrics"][share]["values"]) else None


def _cells(content: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row's cells. `seconds` and memory of each are the row's: files do not hold them by seed."""
    seeds = seeds_of(content, row)
    processor = row.get("processor_seconds") or [None] * len(seeds)
    return [
        {
            "seed": seed,
            "metrics": {name: metric["values"][index] for name, metric in row["metrics"].items()},
            "seconds": row["seconds"],
            **({"processor_seconds": processor[index]} if processor[index] is not None else {}),
            "peak_memory_mib": row["peak_memory_mib"],
            "commits": row.get("commits", [content["commit"]]),
            "measured": {key: content[key] for key in ("date", "hardware", "versions")},
        }
        for index, seed in enumerate(seeds)
    ]
