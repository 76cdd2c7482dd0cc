"""The formats of an export side by side: size, agreement with torch, score, time; and what was not verified."""

from __future__ import annotations

from dataclasses import dataclass

from datafree.deploy.bench_file import Bench, Timed
from datafree.deploy.export_record import Export
from datafree.deploy.formats import FORMATS
from datafree.deploy.formats.check import Made
from datafree.text import percent, readable, size

NOTHING = "–"
HEADS = ("file", "runtime", "size", "against torch")


@dataclass(frozen=True, kw_only=True)
class FormatTable:
    """Texts; the first column is a name."""

    heads: list[str]
    rows: list[list[str]]
    notes: list[str]


def format_table(export: Export, bench: Bench | None) -> FormatTable:
    """A row for each file of a format, and for both networks in torch where they were timed."""
    figure = next((name for scores in export.scores.values() for name in scores.values), None)
    rows = []
    for name in ("teacher", "student"):
        if bench is not None and (timed := bench.rows.get(name)):
            score = "student.safetensors" if name == "student" else ""
            rows.append([name, timed.runtime, _size(timed.bytes), NOTHING, _score(export, score, figure), _time(timed)])
    for made in export.made:
        timed = None if bench is None else bench.rows.get(made.file)
        timed = timed if timed is not None and timed.sha256 == made.sha256 else None  # of an older file
        runtime = FORMATS[made.format].runtime if made.format in FORMATS else made.format
        rows.append(
            [made.file, runtime, size(made.bytes), against(made), _score(export, made.file, figure), _time(timed)]
        )
    heads = [*HEADS, readable(figure) if figure else "score", "time, one image"]
    return FormatTable(heads=heads, rows=rows, notes=notes_of(export, bench))


def notes_of(export: Export, bench: Bench | None) -> list[str]:
    """What the figures are of, and what was not verified, a line each."""
    notes = []
    if compared := next((made.compared for made in export.made if made.compared), 0):
        notes.append(f"Each file was opened again and compared with torch on {compared} images {export.compared_on}.")
    notes += [f"{made.file} is not verified: {made.unverified}." for made in export.made if made.unverified]
    notes += [made.warning for made in export.made if made.warning]
    notes += export.missing
    if bench is not None and bench.rows:
        machine = bench.hardware.get("processor") or "a processor that was not recorded"
        threads, rounds = (_count(n, what) for n, what in ((bench.threads, "thread"), (bench.rounds, "round")))
        notes.append(f"Time: median (and middle half) of one image at a time on {machine}, {threads}, {rounds}.")
        notes += bench.notes
    return notes


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def against(made: Made) -> str:
    """How far a file's answers are torch's."""
    if made.unverified:
        return "not verified"
    if not made.int8:
        return NOTHING if made.error is None else f"relative error {made.error:.1e}"
    return "nothing to compare" if made.agreement is None else f"agrees in {percent(made.agreement)}"


def _size(count: int | None) -> str:
    return NOTHING if count is None else size(count)


def _score(export: Export, file: str, figure: str | None) -> str:
    values = export.scores[file].values if file in export.scores else {}
    return percent(values[figure]) if figure is not None and figure in values else NOTHING


def _time(timed: Timed | None) -> str:
    if timed is None:
        return NOTHING
    return f"{1e3 * timed.seconds:.2f} ms ({1e3 * timed.low:.2f} to {1e3 * timed.high:.2f})"
