"""bench.json of a run: how long its networks take for one image, in each runtime, on a machine that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datafree.errors import RunError
from datafree.storage import strict_json
from datafree.storage.atomic import cannot_write, write_whole
from datafree.storage.run_files import BenchForm

BENCH = "bench.json"


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds for one image."""

    runtime: str
    seconds: float  # the median
    low: float  # a quarter of the passes was faster
    high: float  # a quarter was slower
    bytes: int | None = None  # of its weights, or of its files
    sha256: str | None = None  # of the file; None: a network in torch


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What was timed."""

    threads: int
    rounds: int
    hardware: Mapping[str, Any]
    rows: dict[str, Timed]  # "teacher" and "student" in torch, files by name
    notes: list[str]  # what was not, a line each


def write_bench(run: Path, bench: Bench) -> Path:
    """Write RUN/bench.json, and return its place. Raises RunError."""
    try:
        write_whole(run / BENCH, strict_json.sealed(asdict(bench)))
    except OSError as error:
        raise RunError(cannot_write(run / BENCH, error)) from error
    return run / BENCH


def read_bench(run: Path) -> Bench | None:
    """What RUN/bench.json says; None where there is none.

    Raises RunError for one that is not as it was written.
    """
    if not (run / BENCH).is_file():
        return None
    try:
        form = BenchForm.model_validate(strict_json.read(run / BENCH, BenchForm))
    except strict_json.Damaged as error:
        raise RunError(f"{run / BENCH} is damaged ({error}); remove it, and run `datafree bench` again") from error
    return Bench(
        threads=form.threads,
        rounds=form.rounds,
        hardware=form.hardware,
        rows={name: Timed(**row.model_dump()) for name, row in form.rows.items()},
        notes=form.notes,
    )
