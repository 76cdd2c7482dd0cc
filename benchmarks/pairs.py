"""Pairs of a teacher and a student with their rows: how the benchmarks of methods say what is run, and what came of it.

A row is called PAIR/NAME; with a seed it is a cell (cells.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, Generic, Protocol, TypeVar

from cells import minutes, spread
from datafree.config.paths import expand
from datafree.networks.load import NetworkSpec
from datafree.sources import SOURCES

Results = dict[str, list[dict[str, Any]]]  # PAIR/NAME -> what each seed's cell has left: {seed, metrics, ...}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where a row's images come from, and what is other than in the rest of its pair."""

    method: str  # of SOURCES; "labels": learns from labels; "teacher": the teacher itself; "real": training images
    source: dict[str, Any] = field(default_factory=dict)  # the method's options; a `path` may hold $NAME
    training: dict[str, Any] = field(default_factory=dict)  # over the pair's
    task: dict[str, Any] = field(default_factory=dict)  # over the pair's
    student: NetworkSpec | None = None  # instead of the pair's
    published: float | None = None  # a paper's figure for the same pair, in the unit of the table


class Pair(Protocol):
    """A teacher, a student, and the rows that are run with them; how labels are learnt is each benchmark's own."""

    @property
    def teacher(self) -> NetworkSpec: ...  # without weights it is trained in the run, anew for each seed

    @property
    def student(self) -> NetworkSpec: ...

    @property
    def training(self) -> dict[str, Any]: ...  # of every student

    @property
    def rows(self) -> dict[str, Row]: ...


PairT = TypeVar("PairT", bound=Pair)


@dataclass(frozen=True, kw_only=True)
class Size(Generic[PairT]):
    """What is run, and what its table says of itself."""

    heading: str  # of its section in docs/results.md
    note: str  # below each of its tables
    pairs: dict[str, PairT]


def without(row: Row, **changes: Any) -> Row:
    """The row with other options of its source: an ablation."""
    return replace(row, source={**row.source, **changes})


def rows_of(size: Size[PairT]) -> dict[str, Row]:
    """PAIR/NAME -> row."""
    return {f"{name}/{row}": pair.rows[row] for name, pair in size.pairs.items() for row in pair.rows}


def is_known(row: Row) -> bool:
    """Whether this version has the row's method."""
    return row.method in SOURCES or row.method in ("teacher", "labels", "real")


def chosen_rows(size: Size[PairT], asked: Sequence[str]) -> list[str]:
    """The rows that are asked for (NAME or PAIR/NAME; all if none is) and their teachers, in order.

    Raises ValueError for one that is not there.
    """
    rows = rows_of(size)
    wrong = [name for name in asked if not any(name in (row, row.split("/")[1]) for row in rows)]
    if wrong:
        raise ValueError(f"there is no row {wrong[0]!r}; known: {', '.join(rows)}")
    found = {row for row in rows if not asked or row in asked or row.split("/")[1] in asked}
    return [row for row in rows if row in found | {teacher_of(row) for row in found}]


def teacher_of(row: str) -> str:
    """The row that scores, and where needed trains, the teacher of a row's pair."""
    return f"{row.split('/')[0]}/teacher"


def missing_path(given: Iterable[str]) -> str | None:
    """A line about the first of the paths (as recipes write them) that is not there; None if all are."""
    try:
        absent = [path for path in given if not expand(path).exists()]
    except ValueError as error:
        return str(error)
    return f"{absent[0]} does not exist" if absent else None


def with_whole(rows: Results, *, headline: str, share: str) -> Results:
    """The cells with the metrics that their processes cannot know: `minutes` and `peak_memory_mb` of the whole cell,
    and `share`, its `headline` metric over the teacher's of the same seed (left out where one has none, or scores 0).
    """
    found: Results = {}
    for name, cells in rows.items():
        teachers = {cell["seed"]: cell["metrics"][headline] for cell in rows.get(teacher_of(name), [])}
        found[name] = []
        for cell in cells:
            metrics = dict(cell["metrics"])
            if all(teachers.get(other["seed"]) for other in cells):
                metrics[share] = metrics[headline] / teachers[cell["seed"]]
            metrics["minutes"] = cell["seconds"] / 60
            metrics["peak_memory_mb"] = cell["peak_memory_mib"] * 2**20 / 1e6
            found[name].append({**cell, "metrics": metrics})
    return found


# Tables.

Column = tuple[str, Callable[[Row, list[dict[str, Any]]], str]]  # head; what stands there for a row and its cells


def markdown(name: str, size: Size[PairT], rows: Results, columns: Sequence[Column]) -> str:
    """The table of the pair `name`, a line for each of its rows."""
    lines = [f"{name}:", "", f"| row | {' | '.join(head for head, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row_name, row in size.pairs[name].rows.items():
        cells = rows.get(f"{name}/{row_name}", [])
        lines.append(f"| {row_name} | {' | '.join(show(row, cells) for _, show in columns)} |")
    return "\n".join([*lines, "", size.note, ""])


def percent(head: str, metric: str, absent: str = "–") -> Column:
    """Mean and spread of a fraction, in percent."""
    return head, lambda row, cells: spread([100 * v for v in _values(cells, metric)]) if _has(cells, metric) else absent


def average(head: str, metric: str, digits: int, unit: float = 1.0) -> Column:
    """Mean of a metric in `unit`s of it."""
    return head, lambda row, cells: f"{mean(_values(cells, metric)) / unit:.{digits}f}" if cells else "–"


SEEDS: Column = ("seeds", lambda row, cells: str(len(cells)))
MINUTES: Column = ("minutes", lambda row, cells: minutes(cells))


def _has(cells: list[dict[str, Any]], metric: str) -> bool:
    return bool(cells) and metric in cells[0]["metrics"]


def _values(cells: list[dict[str, Any]], metric: str) -> list[float]:
    return [cell["metrics"][metric] for cell in cells]
