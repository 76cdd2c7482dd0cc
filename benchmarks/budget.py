"""What a student is worth after so many processor minutes of one thread: methods, starts and budgets, over seeds.

    python benchmarks/budget.py --jobs 2 --max-time 2h              # in pieces: run it again until it is done
    python benchmarks/budget.py --rows cifar10/auto/20 --seeds 0

A row is PROBLEM/METHOD/MINUTES. Everything of a run is counted, from the first image on: the plan of its schedule, the
making of images, the student's start, its steps. `training.time` plans the schedule; scoring comes after it. Each cell
is a process of one thread, so that its processor time is comparable on a busy machine. Results go to
benchmarks/results/budget-cpu.json, the table to docs/results.md.

Metrics: `relative`, the student's top-1 over its teacher's on real test images (CIFAR-10: JPEG copies, so no figure is
CIFAR-10's own); `top1`; `steps` of the student as planned; `minutes` of processor time.

Methods: `auto` is `source.method: auto` with the student started from its teacher, `procedural` likewise; `real` learns
from the real training images without their labels: the upper line. Each also from random weights, `-random`. Settings
were chosen on validation images of CIFAR-10 and then held for all problems; no test label chooses anything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from cells import Cell, Stop, folder_of, measure, read_cells, run_cells, seconds, spread
from classification import FASHION, load_images
from classification_rows import CIFAR, CPU, public_resnet
from classification_rows import Pair as Networks
from datafree.config.paths import expand
from datafree.engine.build_networks import prepare
from datafree.errors import Interrupted
from datafree.evaluation.scoring import evaluate
from datafree.networks.load import NetworkSpec
from datafree.recipe.recipe import Recipe, make_recipe
from datafree.run import run_recipe
from datafree.tasks.classification import Classification
from results import write_results, write_table
from supervised import LabelledImages

MINUTES = (5, 20, 60)
LEARNING: dict[str, Any] = {
    "batch_size": 32,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "lr_warmup": 50,
    "mixup": 0.5,
    "save_every": 1000,
    "picture_every": 10**6,
    "log_every": 200,
    "device": "cpu",
    "precision": "fp32",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A teacher with its weights, a student, and the images that score both."""

    images: Networks  # whose data they are
    teacher: NetworkSpec
    student: NetworkSpec
    side: int  # pixels
    shift: int  # pixels, of what the student sees


PROBLEMS = {
    "fashion": Problem(images=CPU, teacher=CPU.teacher, student=CPU.student, side=28, shift=2),
    "cifar10": Problem(images=CIFAR, teacher=CIFAR.teacher, student=CIFAR.student, side=32, shift=4),
    "cifar10-deep": Problem(
        images=CIFAR,
        teacher=public_resnet(56),
        student=replace(CIFAR.student, args={"depth": 20}),
        side=32,
        shift=4,
    ),
}
SOURCES: dict[str, dict[str, Any]] = {
    "auto": {"method": "auto", "warmup": 80},
    "procedural": {"method": "procedural"},
    "real": {"method": "folder", "cache_mib": 1024},
}
ROWS = [
    f"{problem}/{method}{start}/{minutes}"
    for problem in PROBLEMS
    for method in SOURCES
    for start in ("", "-random")
    for minutes in MINUTES
]


def recipe_of(row: str, seed: int, work: Path) -> Recipe:
    """The recipe of a row. Raises DatafreeError, OSError for data that are not there."""
    name, method, minutes = row.split("/")
    problem = PROBLEMS[name]
    kind = method.removesuffix("-random")
    source = dict(SOURCES[kind])
    if kind == "real":
        source["path"] = str(real_images(name, work))
    sections: dict[str, Any] = {
        "task": Classification(num_classes=10, image_size=(problem.side, problem.side), temperature=4.0),
        "teacher": located(problem.teacher),
        "student": replace(problem.student, init="random" if method.endswith("-random") else "teacher"),
        "source": source,
        "training": {**LEARNING, "shift": problem.shift, "time": f"{minutes}m", "seed": seed},
    }
    return make_recipe(sections, row.replace("/", "-"))


def located(spec: NetworkSpec) -> NetworkSpec:
    """The same with the file of its weights looked up: `$NAME` and `builtin:` may stand in it."""
    return replace(spec, weights=expand(str(spec.weights)))


def real_images(name: str, work: Path) -> Path:
    """A folder of a problem's real training images, without their labels; written once."""
    folder = work / "data" / PROBLEMS[name].images.images
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for index, image in enumerate(data_of(name, "train").images):
            pixels = image.movedim(0, -1).squeeze(-1).numpy()
            Image.fromarray(pixels).save(folder / f"{index:05d}.png")
        (folder / "done").touch()
    return folder


@cache
def data_of(name: str, part: Literal["train", "test"]) -> LabelledImages:
    return load_images(PROBLEMS[name].images, part, FASHION)


def run_cell(cell: Cell, work: Path, stop: Stop) -> dict[str, float]:
    """Distil and score a row for a seed; its metrics. Raises Interrupted when time is up."""
    row, seed = cell
    folder = folder_of(work, cell)
    clock = folder / "processor.json"  # seconds of earlier pieces
    before = json.loads(clock.read_text()) if clock.exists() else 0.0
    recipe = recipe_of(row, seed, work)
    test = data_of(row.split("/")[0], "test")
    began = time.process_time()
    try:
        outcome = run_recipe(recipe, folder / "run", stop=stop, say=lambda line: print(f"{row}: {line}", flush=True))
    except Interrupted:
        folder.mkdir(parents=True, exist_ok=True)
        clock.write_text(json.dumps(before + time.process_time() - began))
        raise
    spent = before + time.process_time() - began
    teacher = prepare(recipe.teacher, recipe.task, "teacher", torch.device("cpu"), torch.float32)
    top1, best = (
        evaluate(network, recipe.task, test, device=torch.device("cpu"), batch_size=250).values["top1"]
        for network in (outcome.student, teacher)
    )
    return {"relative": top1 / best, "top1": top1, "minutes": spent / 60, "steps": float(outcome.chosen.step)}


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


def collect(work: Path, asked: Sequence[str], seeds: Sequence[int]) -> None:
    """Write results and tables from the cells that are done; `asked`: the rows that this command named."""
    rows = read_cells(work, ROWS)
    words = ["python benchmarks/budget.py", *(["--rows", *asked] if list(asked) != ROWS else [])]
    write_results("budget", "cpu", rows, command=" ".join([*words, "--seeds", *map(str, seeds)]))
    section = (
        "## Students by processor minutes\n\n`python benchmarks/budget.py`: the student's top-1 in percent of its "
        "teacher's, on test images; one thread, everything counted."
    )
    write_table("results.md", "budget-cpu", table(rows), section=section)


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
    collect(given.work, given.rows, given.seeds)
    return code


if __name__ == "__main__":
    sys.exit(main())
