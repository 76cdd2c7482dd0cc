"""Is `datafree plan` true? Built-in examples, shortened, are planned and then made, in turn; the ratios are written.

    python benchmarks/planned.py                  # three rounds, a quarter of an hour on two cores
    python benchmarks/planned.py --rounds 1 --only boxes

Writes benchmarks/results/planned-cpu.json and the table in docs/scale.md. Ratios: planned by real, of time (opening the
networks to the last file; Python's and torch's own start left out) and of bytes on the disk. Time is that of the
processor with one thread, so that what else is running on a machine does not count.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch

from datafree.preflight.plan import Plan, plan
from datafree.recipe.recipe import load_recipe
from datafree.run import run_recipe
from datafree.synthesis.synthesize import synthesize
from results import write_results, write_table

# Name -> recipe, what shortens it, images of a data set (None: a run).
EXAMPLES: dict[str, tuple[str, list[str], int | None]] = {
    "garments-degan": ("garments-degan", ["source.parts.1.warmup=60", "training.steps=400"], None),
    "fashion-cgdd": ("fashion-cgdd", ["source.warmup=60", "training.steps=400"], None),
    "boxes-demo": ("boxes-demo", ["source.warmup=30", "training.steps=200"], None),
    "fashion-cgdd, set": ("fashion-cgdd", ["source.warmup=60"], 2048),
    "boxes-demo, set": ("boxes-demo", [], 640),
}


def compare(name: str, folder: Path) -> dict[str, Any]:
    """One round: planned, then made in `folder`, which is new."""
    recipe_name, overrides, images = EXAMPLES[name]
    with mock.patch.object(time, "perf_counter", time.process_time):  # what everything is timed by
        planned = plan(load_recipe(recipe_name, overrides), images)
    began = time.process_time()
    if images is None:
        run_recipe(load_recipe(recipe_name, overrides), folder)
    else:
        synthesize(load_recipe(recipe_name, overrides), folder, images)
    taken = time.process_time() - began
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "metrics": {
            "planned_seconds": planned.on[0].seconds,
            "real_seconds": taken,
            "time_ratio": planned.on[0].seconds / taken,
            "planned_bytes": float(on_disk(planned)),
            "real_bytes": float(there),
            "disk_ratio": on_disk(planned) / there,
            "calibration_seconds": planned.calibrated,
        },
        "seconds": taken,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def on_disk(planned: Plan) -> int:
    """What a plan says that lies there at the end: two of the three states that it counts while one is written."""
    return sum(size - size // 3 if what.startswith("states") else size for what, size in planned.disk.items())


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the rounds, and the ratios of each round."""
    lines = ["| example | planned | real | planned / real, each round | disk, planned / real | calibration |"]
    lines.append("|---|--:|--:|---|--:|--:|")
    for name, cells in rows.items():

        def of(metric: str, cells: list[dict[str, Any]] = cells) -> list[float]:
            return [cell["metrics"][metric] for cell in cells]

        each = ", ".join(f"{ratio:.2f}" for ratio in of("time_ratio"))
        lines.append(
            f"| {name} | {mean(of('planned_seconds')):.0f} s | {mean(of('real_seconds')):.0f} s | {each} "
            f"| {mean(of('disk_ratio')):.2f} | {mean(of('calibration_seconds')):.0f} s |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Is `datafree plan` true?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="of the examples whose name begins so; writes nothing")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in EXAMPLES if name.startswith(chosen.only)}
    for number in range(chosen.rounds):
        for name, cells in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                cells.append(compare(name, Path(folder) / "out"))
            figures = {key: round(value, 2) for key, value in cells[-1]["metrics"].items()}
            print(f"round {number}: {name} {figures}", flush=True)
    if not chosen.only:
        write_results("planned", "cpu", rows, command=" ".join(["python benchmarks/planned.py", *arguments]))
        write_table("scale.md", "planned", table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
