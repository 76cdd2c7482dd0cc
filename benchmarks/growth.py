"""How time and memory grow with the images of a data set, and with the steps of a run.

    python benchmarks/growth.py                   # some twenty minutes on two cores
    python benchmarks/growth.py --only images     # or: steps
    python benchmarks/growth.py --collect-only    # only write results and pictures from finished cells

images/N: a data set of N images with boxes (the recipe boxes-noise: 64 x 64 pixels, shards of 256) is made, verified
and learnt from for a few steps. steps/METHOD/N: a run of N steps with small networks, its bank filling up on the way,
saved every tenth of them. Every cell, and each of the three things that are done with a data set, is a process of its
own.

Metrics: `seconds` by the clock and `processor_seconds` of the process, which a busy machine changes less: the pictures
show these; `peak_mib`, the most memory the process had resident, and `start_mib`, what it had once one shard
was written or one tenth of 1,000 steps done; `disk_mib` of all files; `index_seconds`, to write what is about a whole
set; `verify_seconds`, `verify_peak_mib`, `learn_peak_mib`.
The largest cells also say how time and memory went on the way; docs/pictures/growth-*.svg show it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datafree.engine.progress import Progress
from datafree.recipe.recipe import Recipe, load_recipe
from datafree.report.run_reader import Series
from datafree.run import run_recipe
from datafree.synthesis.synthesize import synthesize, verify
from pictures import write_chart
from results import HERE, write_results, write_table

IMAGES = (1_000, 10_000, 100_000)
STEPS = (1_000, 10_000)
LEARNT = 20  # steps that learn from a data set
# Cells of steps, by method: small networks, and a bank that is full long before the last step of the longest run.
RUNS = {
    "cgdd": ("fashion-cgdd", ["source.width=4", "source.batch_size=8", "source.warmup=20", "source.bank_size=4000"]),
    "degan": ("garments-degan", ["task.image_size=[32, 32]", "source.parts.1.width=4", "source.parts.1.warmup=20"]),
}


# One process.


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Trace:
    """The processor's time and memory at moments of a run, at most `most` of them apart from the last."""

    def __init__(self, whole: int, most: int = 100) -> None:
        self._every = max(1, whole // most)
        self._began = time.process_time()
        self._next = 0
        self.points: list[list[float]] = []  # at what, processor's seconds, MiB

    def __call__(self, progress: Progress) -> None:
        self._last = self._now(progress.step)
        if progress.step >= self._next:
            self._next = progress.step + self._every
            self.points.append(self._last)

    def end(self) -> None:
        """Now, all being done."""
        self.points += [*([self._last] if self._last != self.points[-1] else []), self._now(int(self._last[0]))]

    def _now(self, at: int) -> list[float]:
        return [at, round(time.process_time() - self._began, 2), round(resident_mib(), 1)]


def make(folder: Path, images: int) -> dict[str, Any]:
    """A data set of so many images."""
    trace = Trace(images)
    began = time.perf_counter()
    made = synthesize(load_recipe("boxes-noise"), folder, images, log=trace)
    seconds = time.perf_counter() - began
    trace.end()
    return {
        "metrics": {
            "seconds": seconds,
            "processor_seconds": trace.points[-1][1],
            "images_per_second": made.images / seconds,
            "start_mib": trace.points[0][2],
            "peak_mib": peak_mib(),
            "index_seconds": trace.points[-1][1] - trace.points[-2][1],
            "disk_mib": disk_mib(folder),
        },
        "trace": trace.points,
    }


def check(folder: Path, images: int) -> dict[str, Any]:
    """The set compared with its checksums."""
    began = time.perf_counter()
    assert verify(load_recipe("boxes-noise"), folder).images >= images
    return {"metrics": {"verify_seconds": time.perf_counter() - began, "verify_peak_mib": peak_mib()}}


def learn(folder: Path, images: int) -> dict[str, Any]:
    """A student that learns from the set for a few steps."""
    source = f"source={{method: dataset, path: '{folder / 'data'}'}}"
    recipe = load_recipe("boxes-noise", [source, f"training.steps={LEARNT}", "training.batch_size=8", "data=null"])
    run_recipe(recipe, folder.with_name(f"{folder.name}-run"))
    return {"metrics": {"learn_peak_mib": peak_mib()}}


def run(folder: Path, method: str, steps: int) -> dict[str, Any]:
    """A run of so many steps."""
    trace = Trace(steps)
    began = time.perf_counter()
    run_recipe(run_of(method, steps), folder, log=trace)
    seconds = time.perf_counter() - began
    trace.end()
    settled = next((memory for step, _, memory in trace.points if step >= STEPS[0] // 10), trace.points[-1][2])
    figures = {"seconds": seconds, "processor_seconds": trace.points[-1][1]}
    figures |= {"start_mib": settled, "peak_mib": peak_mib(), "disk_mib": disk_mib(folder)}
    return {"metrics": figures, "trace": trace.points}


def run_of(method: str, steps: int) -> Recipe:
    name, small = RUNS[method]
    more = [
        f"training.{key}={value}" for key, value in (("batch_size", 8), ("steps", steps), ("save_every", steps // 10))
    ]
    return load_recipe(name, [*small, *more, "data=null"])


def disk_mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


# All of them.


def names() -> list[str]:
    return [
        *(f"images/{count}" for count in IMAGES),
        *(f"steps/{method}/{count}" for method in RUNS for count in STEPS),
    ]


def run_cell(name: str, what: str, folder: Path) -> dict[str, Any]:
    """What this process is for."""
    kind, *rest = name.split("/")
    if kind == "steps":
        return run(folder, rest[0], int(rest[1]))
    parts: dict[str, Callable[[Path, int], dict[str, Any]]] = {"make": make, "check": check, "learn": learn}
    return parts[what](folder, int(rest[0]))


def measure(name: str, work: Path) -> dict[str, Any]:
    """All of a cell, its parts in processes of their own; its files are removed."""
    folder = work / name.replace("/", "-")
    cell: dict[str, Any] = {"metrics": {}}
    for what in ("make", "check", "learn") if name.startswith("images/") else ("run",):
        out = work / "part.json"
        words = [sys.executable, __file__, "--one", name, what, str(folder), str(out)]
        subprocess.run(words, check=True)
        part = json.loads(out.read_text())
        cell["metrics"] |= part["metrics"]
        cell |= {"trace": part["trace"]} if "trace" in part else {}
    for made in work.glob(f"{folder.name}*"):
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    metrics = cell["metrics"]
    peaks = [value for key, value in metrics.items() if key.endswith("peak_mib")]
    return {**cell, "seconds": metrics["seconds"], "peak_memory_mib": max(peaks)}


def collect(work: Path) -> None:
    """Results, tables and pictures from the cells that are there."""
    cells = {
        name: json.loads(file.read_text())
        for name in names()
        if (file := work / f"{name.replace('/', '-')}.json").exists()
    }
    bare = {name: [{key: value for key, value in cell.items() if key != "trace"}] for name, cell in cells.items()}
    write_results("growth", "cpu", bare, command="python benchmarks/growth.py")
    write_table("scale.md", "growth", table(cells))
    for name, cell in cells.items():
        kind, *method, count = name.split("/")
        if int(count) in (IMAGES[-1], STEPS[-1]):
            picture("-".join([kind, *method]), "images" if kind == "images" else "step", cell["trace"])


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each cell."""
    columns: dict[str, Callable[[dict[str, float]], str]] = {
        "processor's minutes": lambda of: f"{of['processor_seconds'] / 60:.1f}",
        "memory after a first part, MiB": lambda of: f"{of['start_mib']:.0f}",
        "most memory, MiB": lambda of: f"{of['peak_mib']:.0f}",
        "on disk, MiB": lambda of: f"{of['disk_mib']:.0f}",
        "index, seconds": lambda of: f"{of['index_seconds']:.1f}" if "index_seconds" in of else "",
        "verify, seconds by the clock": lambda of: f"{of['verify_seconds']:.1f}" if "verify_seconds" in of else "",
        "most memory of learning from it, MiB": lambda of: (
            f"{of['learn_peak_mib']:.0f}" if "learn_peak_mib" in of else ""
        ),
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, cell in cells.items():
        kind, *method, count = name.split("/")
        what = f"{int(count):,} {kind}{''.join(f' of {each}' for each in method)}"
        lines.append(f"| {what} | " + " | ".join(told(cell["metrics"]) for told in columns.values()) + " |")
    return "\n".join(lines) + "\n"


def picture(name: str, x_unit: str, trace: list[list[float]]) -> None:
    """Two drawings: seconds and memory on the way of the largest cell."""
    for what, unit, column in (("time", "processor's seconds", 1), ("memory", "MiB", 2)):
        line = Series(name=what, points=[(point[0], point[column]) for point in trace if point[0] >= 0])
        file = HERE.parent / "docs" / "pictures" / f"growth-{name}-{what}.svg"
        write_chart(file, f"{what} ({unit}) against {x_unit}", [line], unit=unit, x_unit=x_unit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cells, or how their names begin")
    parser.add_argument("--work", type=Path, default=Path("work/growth"))
    parser.add_argument("--collect-only", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, what, folder, out = given.one
        Path(out).write_text(json.dumps(run_cell(name, what, Path(folder))))
        return 0
    given.work.mkdir(parents=True, exist_ok=True)
    for name in [] if given.collect_only else names():
        file = given.work / f"{name.replace('/', '-')}.json"
        if not file.exists() and (not given.only or name.startswith(tuple(given.only))):
            cell = measure(name, given.work.resolve())
            file.write_text(json.dumps(cell) + "\n")
            print(name, {key: round(value, 1) for key, value in cell["metrics"].items()}, flush=True)
    collect(given.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
