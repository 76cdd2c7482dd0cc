"""Cells of a benchmark: a row with a seed. Each is a process of its own that leaves a small JSON file in a work folder.

A cell whose file is there is not run again; one whose time was up goes on where it stopped. WORK/seedSEED/ROW holds
what belongs to a cell.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from datafree.errors import Interrupted
from results import commit

TIME_UP = 75  # exit status: run the same command again
LEAST = 5  # seconds: with less left, no further cell is started
SAVED_EVERY = 10.0  # seconds: how often a cell's time is written down

Cell = tuple[str, int]  # row, seed
Stop = Callable[[], str | None]  # why to stop now, or None


def folder_of(work: Path, cell: Cell) -> Path:
    return work / f"seed{cell[1]}" / cell[0]


def is_done(work: Path, cell: Cell) -> bool:
    return (folder_of(work, cell) / "cell.json").exists()


def measure(cell: Cell, work: Path, max_time: float, run: Callable[[Stop], dict[str, float]]) -> int:
    """Run a cell in this process and leave its JSON file: {metrics, seconds, peak_memory_mib, commit}, and
    `processor_seconds` where the processor is what computes.

    `run` gets what to ask whether to stop, and returns metrics as fractions, or raises Interrupted. Returns the
    process's exit status: TIME_UP if time (`max_time` seconds) was up before the cell's end. A piece that is killed has
    been counted up to some seconds before; what is then done again counts twice.
    """
    began, spent = time.monotonic(), processor_seconds()
    folder = folder_of(work, cell)
    clock = folder / "seconds.json"  # of earlier pieces
    before = read_clock(clock)

    def save() -> None:
        write_json(clock, _later(before, began, spent))

    try:
        metrics = run(saving(lambda: "time is up" if time.monotonic() - began > max_time else None, save))
    except Interrupted as error:
        save()
        print(error, flush=True)
        return TIME_UP
    done = {
        "metrics": metrics,
        **{name: value for name, value in _later(before, began, spent).items() if value is not None},
        "peak_memory_mib": peak_memory_mib(),
        "commit": commit(),
    }
    write_json(folder / "cell.json", done)
    print(f"{cell[0]} seed {cell[1]}: " + ", ".join(f"{k} {_shown(v)}" for k, v in metrics.items()), flush=True)
    return 0


def saving(stop: Stop, save: Callable[[], None]) -> Stop:
    """`stop`, which also calls `save` now and then: a piece that is killed leaves its time."""
    last = time.monotonic()

    def asked() -> str | None:
        nonlocal last
        if time.monotonic() - last >= SAVED_EVERY:
            save()
            last = time.monotonic()
        return stop()

    return asked


def write_json(file: Path, content: Any) -> None:
    """Write a file whole, its folder first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}")
    aside.write_text(json.dumps(content))
    aside.replace(file)


Clock = dict[str, float | None]  # `seconds` on the wall, and `processor_seconds`: None where they were not counted


def read_clock(file: Path) -> Clock:
    """The time that earlier pieces of a cell took. An older file is a number, of seconds on the wall."""
    content = json.loads(file.read_text()) if file.exists() else {"seconds": 0.0, "processor_seconds": 0.0}
    return content if isinstance(content, dict) else {"seconds": float(content), "processor_seconds": None}


def _later(before: Clock, began: float, spent: float) -> Clock:
    """The clock now, of a piece that began at `began` when the process had used `spent` processor seconds."""
    earlier, counted = before["seconds"], before["processor_seconds"]
    unknown = counted is None or torch.cuda.is_available()  # a GPU's work is not in a processor's time
    return {
        "seconds": (earlier or 0.0) + time.monotonic() - began,
        "processor_seconds": None if unknown else (counted or 0.0) + processor_seconds() - spent,
    }


def processor_seconds() -> float:
    """Processor time of this process, all its threads, and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _shown(value: float) -> str:
    return f"{value:.2%}" if value <= 1 else f"{value:.0f}"


def run_cells(
    command: Sequence[str],  # of a benchmark's script, to which "--one ROW SEED --max-time ..." is added
    cells: Sequence[Cell],
    work: Path,
    *,
    max_time: float,  # seconds
    jobs: int = 1,  # processes at a time; with more than one, each computes with one thread
    needs: Callable[[Cell], list[Cell]] = lambda cell: [],  # the cells whose files a cell reads
    keep_going: bool = False,  # after a cell that failed: run those that do not need it
) -> int:
    """Run the cells that are not done, in their order as far as `jobs` and `needs` allow.

    Returns 0, or the exit status of the first that failed, TIME_UP where time was up. What still runs when this is
    left by an exception is ended; it goes on from its last saved state.
    """
    began = time.monotonic()
    waiting = list(cells)
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    failed: dict[Cell, int] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if jobs > 1 else None
    short = False  # of time
    try:
        while True:
            # Start what can be started.
            stopped = short or (bool(failed) and not keep_going)
            waiting = [cell for cell in waiting if not is_done(work, cell)]  # another process may work here too
            ready = [cell for cell in waiting if all(is_done(work, other) for other in needs(cell))]
            if ready and len(running) < jobs and not stopped:
                remaining = max_time - (time.monotonic() - began)
                if remaining < LEAST:
                    print("time is up; the same command resumes", flush=True)
                    short = True
                    continue
                cell = ready[0]
                waiting.remove(cell)
                words = [*command, "--one", cell[0], str(cell[1]), "--max-time", f"{remaining:.0f}s"]
                running[cell] = subprocess.Popen(words, env=environment)
                continue

            # Wait for the next to end.
            if not running:
                break
            ended = [cell for cell, process in running.items() if process.poll() is not None]
            for cell in ended:
                code = running.pop(cell).returncode
                if code == TIME_UP:
                    short = True
                elif code:
                    failed[cell] = code
            if not ended:
                time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    for (row, seed), code in failed.items():
        print(f"{row} seed {seed}: failed with exit status {code}", flush=True)
    return next(iter(failed.values()), TIME_UP if short else 0)


def read_cells(work: Path, rows: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What the cells that are done have left, in the order of their seeds: row -> {seed, metrics, ...} for each.

    Rows of which no cell is done are left out.
    """
    seeds = sorted(int(path.name.removeprefix("seed")) for path in work.glob("seed*"))
    found = {}
    for row in rows:
        done = [seed for seed in seeds if is_done(work, (row, seed))]
        files = [folder_of(work, (row, seed)) / "cell.json" for seed in done]
        if files:
            found[row] = [{"seed": seed, **json.loads(f.read_text())} for seed, f in zip(done, files, strict=True)]
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation over seeds, as text; one value alone has none."""
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def minutes(cells: Sequence[dict[str, Any]]) -> str:
    """Mean processor minutes as text, of the cells that counted them; of none, the mean of wall minutes, marked."""
    counted = [cell["processor_seconds"] for cell in cells if cell.get("processor_seconds") is not None]
    if counted or not cells:
        return f"{mean(counted) / 60:.1f}" if counted else "–"
    return f"{mean(cell['seconds'] for cell in cells) / 60:.1f} wall"


def seconds(text: str) -> float:
    """Seconds of a time such as 90s, 9m or 2h. Raises ValueError."""
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if amount is None:
        raise ValueError(f"--max-time {text} is not a time; write it as 90s, 9m or 2h")
    return float(amount[1]) * {"s": 1, "m": 60, "h": 3600}[amount[2]]


def peak_memory_mib() -> float:
    """The most memory of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
