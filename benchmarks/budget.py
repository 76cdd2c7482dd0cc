"""What a student is worth after so many processor minutes of one thread: methods, starts and budgets, over seeds.

    python benchmarks/budget.py --jobs 2 --max-time 2h              # in pieces: run it again until it is done
    python benchmarks/budget.py --rows cifar10/auto/20 --seeds 0

A row is PROBLEM/METHOD/MINUTES (budget_problems.py). Everything of a run is counted, from the first image on: the plan
of its schedule, the making of images, the student's start, its steps. `training.time` plans the schedule; scoring comes
after it. Teachers without public weights are trained before the clock starts, once for all seeds, and kept in --work.
Each cell is a process of one thread, so that its processor time is comparable on a busy machine. Results go to
benchmarks/results/budget-cpu.json, the table to docs/results.md, the curves of `auto` to docs/pictures: budget.svg of
classifiers, budget-dense.svg of maps and boxes.

Metrics: `relative`, the student's score over its teacher's on real test images; the score itself, `top1`, `miou` or
`ap50`; `steps` of the student as planned; `minutes` of processor time.

Methods: `auto` is `source.method: auto` with the student started from its teacher, `procedural` and `photos` (a folder
of related ones) are single sources; `real` learns from real training images without their labels: the upper line. Each
also from random weights, `-random`. Settings were chosen on images of Fashion-MNIST, CIFAR-10 and CamVid that no row of
`auto` sees and none is scored on, and then held for all problems; no test label chooses anything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import results
from budget_problems import PROBLEMS, Problem, trained
from cells import Cell, Stop, folder_of, measure, read_cells, run_cells, saving, seconds, spread, write_json
from datafree.config.paths import expand
from datafree.engine.build_networks import prepare
from datafree.errors import Interrupted
from datafree.evaluation.scoring import evaluate
from datafree.networks.load import NetworkSpec
from datafree.recipe.recipe import Recipe, make_recipe
from datafree.report.run_reader import Series
from datafree.run import run_recipe
from measured import seeds_in, with_earlier
from pictures import write_chart
from results import write_results, write_table

PICTURES = results.HERE.parent / "docs" / "pictures"
MINUTES = (5, 20, 60)
LEARNING: dict[str, Any] = {
    "batch_size": 64,
    "lr": 1e-2,
    "weight_decay": 0.0,
    "lr_warmup": 50,
    "mixup": 0.5,
    "save_every": 1000,
    "picture_every": 10**6,
    "log_every": 200,
    "device": "cpu",
    "precision": "fp32",
}
SOURCES: dict[str, dict[str, Any]] = {
    "auto": {"method": "auto"},
    "procedural": {"method": "procedural"},
    "photos": {"method": "folder", "crop": "random", "flip": True},
    "real": {"method": "folder", "cache_mib": 1024},
}
ROWS = [
    f"{name}/{method}{start}/{minutes}"
    for name, problem in PROBLEMS.items()
    for method in problem.methods
    for start in problem.starts
    for minutes in MINUTES
]


def recipe_of(row: str, seed: int, work: Path, teacher: NetworkSpec) -> Recipe:
    """The recipe of a row. Raises DatafreeError, OSError, ValueError for data that are not there."""
    name, method, minutes = row.split("/")
    problem = PROBLEMS[name]
    sections: dict[str, Any] = {
        "task": problem.task,
        "teacher": teacher,
        "student": replace(problem.student, init="random" if method.endswith("-random") else "teacher"),
        "source": source_of(problem, method.removesuffix("-random"), work),
        "training": {**LEARNING, **problem.training, "time": f"{minutes}m", "seed": seed},
    }
    return make_recipe(sections, row.replace("/", "-"))


def source_of(problem: Problem, kind: str, work: Path) -> dict[str, Any]:
    """The section `source` of a method, with the problem's folders."""
    source = dict(SOURCES[kind])
    if kind == "real":
        assert problem.real is not None, "a problem has the method only where there are real images"
        source |= {"path": str(problem.real(work)), **problem.crops}
    if problem.photos is not None and kind in ("auto", "photos"):
        source["photos" if kind == "auto" else "path"] = str(expand(problem.photos))
    return source


def run_cell(cell: Cell, work: Path, stop: Stop) -> dict[str, float]:
    """Distil and score a row for a seed; its metrics. Raises Interrupted when time is up."""
    row, seed = cell
    folder = folder_of(work, cell)
    clock = folder / "processor.json"  # seconds of earlier pieces
    before = json.loads(clock.read_text()) if clock.exists() else 0.0
    problem = PROBLEMS[row.split("/")[0]]
    recipe = recipe_of(row, seed, work, trained(problem, row.split("/")[0], work, stop))
    test = problem.test()
    began = time.process_time()

    def save() -> None:
        write_json(clock, before + time.process_time() - began)

    def say(line: str) -> None:
        print(f"{row}: {line}", flush=True)

    try:
        outcome = run_recipe(recipe, folder / "run", stop=saving(stop, save), say=say)
    except Interrupted:
        save()
        raise
    spent = before + time.process_time() - began
    teacher = prepare(recipe.teacher, recipe.task, "teacher", torch.device("cpu"), torch.float32)
    score, best = (
        evaluate(network, recipe.task, test, device=torch.device("cpu"), batch_size=64).values[problem.headline]
        for network in (outcome.student, teacher)
    )
    steps = float(outcome.chosen.step)
    return {"relative": score / best, problem.headline: score, "minutes": spent / 60, "steps": steps}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line for each method of a problem, a column for each budget."""
    heads = [f"{minutes} min" for minutes in MINUTES]
    lines = [f"| problem | method | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name in dict.fromkeys(row.rpartition("/")[0] for row in ROWS):
        found = [rows.get(f"{name}/{minutes}", []) for minutes in MINUTES]
        if any(found):
            shown = [spread([100 * cell["metrics"]["relative"] for cell in cells]) for cells in found]
            lines.append(f"| {name.replace('/', ' | ')} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def curves(rows: dict[str, list[dict[str, Any]]], method: str = "auto") -> list[Series]:
    """A line for each problem: (processor minutes, percent of the teacher's score), means over seeds."""
    found = []
    for name in PROBLEMS:
        cells = [rows[row] for minutes in MINUTES if rows.get(row := f"{name}/{method}/{minutes}")]
        of = [[mean(cell["metrics"][what] for cell in each) for what in ("minutes", "relative")] for each in cells]
        found.append(Series(name=name, points=sorted((round(time, 1), 100 * relative) for time, relative in of)))
    return [line for line in found if line.points]


def charts(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[Series]]:
    """The curves of `auto` by their picture's file: classifiers, and maps and boxes. A chart tells eight apart."""
    found: dict[str, list[Series]] = {}
    for line in curves(rows):
        is_classifier = PROBLEMS[line.name].headline == "top1"
        found.setdefault("budget.svg" if is_classifier else "budget-dense.svg", []).append(line)
    return found


def collect(work: Path) -> None:
    """Write results, table and picture from the cells that are done and those of the file as it was."""
    done = read_cells(work, ROWS)
    rows = with_earlier("budget", "cpu", done)
    if done:
        write_results("budget", "cpu", rows, command=f"python benchmarks/budget.py --seeds {seeds_in(rows)}")
    section = "## Students by processor minutes\n\n`python benchmarks/budget.py`: in percent of the teacher's score."
    write_table("results.md", "budget-cpu", table(rows), section=section)
    for file, lines in charts(rows).items():
        title = "percent of the teacher's score against processor minutes, source.method=auto"
        write_chart(PICTURES / file, title, lines, unit="%", x_unit="processor minutes of one thread")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, help="PROBLEM/METHOD/MINUTES; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("work/budget"))
    parser.add_argument(
        "--max-time", default="1000h", help="stop cleanly after this long (9m, 2h); run again to resume"
    )
    parser.add_argument("--collect-only", action="store_true", help="only write results and tables")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if wrong := [row for row in given.rows if row not in ROWS]:
        parser.error(f"there is no row {wrong[0]!r}; known: {', '.join(ROWS)}")
    try:
        limit = seconds(given.max_time)
    except ValueError as error:
        parser.error(str(error))
    if given.one:
        torch.set_num_threads(1)
        cell = (given.one[0], int(given.one[1]))
        code = measure(cell, given.work, limit, lambda stop: run_cell(cell, given.work, stop))
        if not code:
            shutil.rmtree(folder_of(given.work, cell) / "run" / "state", ignore_errors=True)
        return code
    code = 0
    if not given.collect_only:
        os.environ["OMP_NUM_THREADS"] = "1"
        cells = [(row, seed) for seed in given.seeds for row in given.rows]
        command = [sys.executable, __file__, "--work", str(given.work)]
        code = run_cells(command, cells, given.work, max_time=limit, jobs=given.jobs, keep_going=True)
    collect(given.work)
    return code


if __name__ == "__main__":
    sys.exit(main())
