"""Which health signal tells how good a student is: signals that need no labels, ranked against true accuracy.

    python benchmarks/health.py --jobs 2                       # Fashion-MNIST on a CPU, about 20 minutes of one core
    python benchmarks/health.py --finished WORK [WORK ...]     # also rank the finished runs of classification.py

The runs are short ones of the classification benchmark's rows (good methods, ablations, baselines, collapses), with
the same teacher and student. At each of four points of a run its signals are logged (`datafree.health.signals`), and
the student is scored there on 2,000 of Fashion-MNIST's test images, which nothing but this script sees. Two questions:

- over runs: does a signal, at the end of a run, rank runs as their accuracy does (of different methods and seeds)?
- within a run: does it rank the checkpoints of one run as their accuracy does? The mean over runs.

The results go to benchmarks/results/health-cpu.json: metrics are named SIGNAL@STEP, `top1@STEP` being the truth. The
table goes to docs/health.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from cells import read_cells, run_cells, seconds
from classification import FASHION, load_images, make_source, missing_data
from classification_rows import CLASSES, CPU, Pair
from datafree.config import schema
from datafree.config.paths import expand
from datafree.data.images import to_tensor
from datafree.engine.build_networks import prepare
from datafree.engine.loop import distill
from datafree.engine.progress import Progress
from datafree.evaluation.scoring import evaluate
from datafree.health.signals import health_metrics
from datafree.health.verdict import SIGNALS, judge
from datafree.networks.normalized import Normalized
from datafree.report.image_grid import cells, read_picture
from datafree.storage.run_directory import Run
from datafree.tasks.classification import Classification
from pairs import Results, Row, Size, rows_of, without
from results import write_results, write_table
from students import Work, run_row
from supervised import LabelledImages

LOOKS = 4  # at a run
GOOD_LONG, GOOD_SHORT = 0.7, 0.5  # top-1 accuracy at the end of a run whose ranges are shown
TESTED = 2000  # images
OLD = {  # names of signals in logs of finished runs -> today's
    **{name.removeprefix("held_out_"): name for name in SIGNALS},
    **{name: name for name in SIGNALS},
}


def short(row: Row) -> Row:
    """The row with fewer updates of a source that makes each batch anew; never stopped by its guard."""
    fewer = {"inversion": {"warmup": 5}, "cmi": {"warmup": 4}, "fast": {"warmup": 10}, "cgdd": {"warmup": 60}}
    unguarded = {"on_collapse": "ignore"} if row.method in ("cgdd", "dafl", "dfad", "zskt") else {}
    return replace(row, source={**row.source, **fewer.get(row.method, {}), **unguarded})


NAMES = ("kd_real", "kd_proxy", "noise", "cgdd", "dafl", "dfad", "zskt", "inversion", "cmi", "fast", "cgdd_no_bn")
ROWS = {name: short(CPU.rows[name]) for name in NAMES}
ROWS["cgdd_no_balance"] = short(without(CPU.rows["cgdd"], balance_weight=0.0, target_weight=0.0))
SIZES = {
    "cpu": Size(
        heading="Health signals and accuracy",
        note="",
        pairs={
            "fashion-mnist": replace(
                CPU, rows=ROWS, training={**CPU.training, "steps": 240, "batch_size": 64, "log_every": 60}
            )
        },
    )
}


# One run.


def run_cell(work: Work[Pair], fashion: Path) -> dict[str, float]:
    """Train a row for a seed: metrics SIGNAL@STEP and top1@STEP. Raises Interrupted when time is up."""
    test = load_images(work.pair, "test", fashion)
    some = LabelledImages(images=test.images[:TESTED], labels=test.labels[:TESTED], class_names=test.class_names)
    student, truth = work.fresh(work.student), {}
    training = replace(work.training, save_every=work.training.log_every)

    def score(progress: Progress) -> None:
        if progress.step > 0:
            found = evaluate(student, work.task, some, device=work.device, batch_size=250)
            truth[progress.step] = found.values["top1"]

    described = {"row": work.name, "source": schema.plain(work.row.source), "training": asdict(training)}
    run = Run(work.folder / work.name, described)
    source = make_source(work.row, work.pair, fashion)
    try:
        distill(
            task=work.task, teacher=work.teacher(), student=student, source=source, training=training, run=run,
            stop=work.stop, log=score,
        )  # fmt: skip
    finally:
        run.close()
    metrics = {f"top1@{step}": value for step, value in truth.items()}
    for line in read_lines(run.path / "metrics.jsonl"):
        metrics |= {f"{name}@{line['step']}": line[name] for name in SIGNALS if name in line and "agreement" in line}
    return metrics


def run_one(cell: tuple[str, int], folder: Path, fashion: Path, max_time: float) -> int:
    """Run a cell in this process and leave its JSON file; the process's exit status."""
    pair = SIZES["cpu"].pairs["fashion-mnist"]
    row = pair.rows[cell[0].split("/")[1]]
    task = Classification(num_classes=CLASSES, image_size=(pair.side, pair.side), **{**pair.task, **row.task})
    return run_row(cell, pair, task, folder, max_time, lambda work: run_cell(work, fashion))


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# Ranks.


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) + 1) / 2 for value in values]


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Rank correlation in [-1, 1]; None where either does not vary or there are fewer than three."""
    if len(ours) < 3 or len(set(ours)) < 2 or len(set(theirs)) < 2:
        return None
    pair = torch.tensor([ranks(ours), ranks(theirs)], dtype=torch.float64)
    return float(torch.corrcoef(pair)[0, 1])


def steps_of(cell: dict[str, Any]) -> list[int]:
    return sorted(int(name.split("@")[1]) for name in cell["metrics"] if name.startswith("top1@"))


def over_runs(cells: Sequence[dict[str, Any]], signal: str) -> tuple[float | None, int]:
    """The correlation at the end of runs, and of how many."""
    ends = [(cell["metrics"], steps_of(cell)[-1]) for cell in cells]
    pairs = [(m[f"{signal}@{s}"], m[f"top1@{s}"]) for m, s in ends if f"{signal}@{s}" in m]
    return spearman([ours for ours, _ in pairs], [truth for _, truth in pairs]), len(pairs)


def within_runs(cells: Sequence[dict[str, Any]], signal: str) -> float | None:
    """The mean over runs of the correlation over a run's checkpoints."""
    found = []
    for cell in cells:
        metrics = cell["metrics"]
        steps = [step for step in steps_of(cell) if f"{signal}@{step}" in metrics]
        value = spearman([metrics[f"{signal}@{s}"] for s in steps], [metrics[f"top1@{s}"] for s in steps])
        found += [] if value is None else [value]
    return mean(found) if found else None


def good_range(cells: Sequence[dict[str, Any]], signal: str, least: float) -> str:
    """Lowest to highest at the end of runs whose accuracy is at `least` that, and the median of the others."""
    ends = [(cell["metrics"], steps_of(cell)[-1]) for cell in cells]
    seen = [(m[f"{signal}@{s}"], m[f"top1@{s}"]) for m, s in ends if f"{signal}@{s}" in m]
    good, bad = [v for v, top1 in seen if top1 >= least], [v for v, top1 in seen if top1 < least]
    show: Callable[[float], str] = SIGNALS[signal].show
    others = show(median(bad)) if len(bad) > 1 else "–"
    return f"{show(min(good))} to {show(max(good))} | {others}" if good else f"– | {others}"


def table(cells: Sequence[dict[str, Any]], finished: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each signal, the most telling over runs first."""

    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:+.2f}"

    lines = [
        f"| signal | over {len(cells)} short runs | over {len(finished)} long runs | within a run "
        f"| good runs | median of the others |",
        "|---|---|---|---|---|---|",
    ]
    found = {name: over_runs(cells, name)[0] for name in SIGNALS}
    for name in sorted(SIGNALS, key=lambda name: -abs(found[name] or 0)):
        long, known = over_runs(finished, name)
        lines.append(
            f"| {SIGNALS[name].title} | {text(found[name])} | {text(long)} | {text(within_runs(cells, name))} "
            f"| {good_range(finished, name, GOOD_LONG) if known else good_range(cells, name, GOOD_SHORT)} |"
        )
    return "\n".join(lines) + "\n"


def verdicts(cells: Sequence[dict[str, Any]]) -> str:
    """Markdown: how many runs got which verdict at their end, and how good their students were."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        metrics, step = cell["metrics"], steps_of(cell)[-1]
        verdict = judge({name: metrics[f"{name}@{step}"] for name in SIGNALS if f"{name}@{step}" in metrics})
        found.setdefault(verdict.word, []).append(metrics[f"top1@{step}"])
    lines = ["| verdict at the end | runs | top-1 % of the students, lowest to highest | median |", "|---|---|---|---|"]
    for word in [word for word in ("healthy", "watch", "collapsed") if word in found]:
        top1 = [100 * value for value in found[word]]
        lines.append(f"| {word} | {len(top1)} | {min(top1):.1f} to {max(top1):.1f} | {median(top1):.1f} |")
    return "\n".join(lines) + "\n"


# Runs that classification.py has finished.


def read_finished(works: Sequence[Path]) -> Results:
    """The last look that runs of classification.py logged, and the accuracy of their students: one step, the last.

    What older runs have not logged of the teacher is computed from the eight images of their last picture.
    """
    task = Classification(num_classes=CLASSES, image_size=(CPU.side, CPU.side))
    weights = expand(str(CPU.teacher.weights))
    cpu = torch.device("cpu")
    teacher = prepare(replace(CPU.teacher, weights=weights), task, "teacher", cpu, torch.float32)
    found: Results = {}
    for cell in sorted(file for work in works for file in work.glob("seed*/fashion-mnist/*/cell.json")):
        log = cell.parent / "metrics.jsonl"
        looks = [line for line in read_lines(log) if "agreement" in line] if log.is_file() else []
        if not looks:
            continue
        content, last = json.loads(cell.read_text(encoding="utf-8")), looks[-1]
        step = last["step"]
        seen = {**pictured(cell.parent, task, teacher), **{OLD[name]: last[name] for name in OLD if name in last}}
        metrics = {f"{name}@{step}": value for name, value in seen.items()}
        metrics[f"top1@{step}"] = content["metrics"]["top1"]
        seed = int(cell.parent.parent.parent.name.removeprefix("seed"))
        found.setdefault(f"finished/{cell.parent.name}", []).append({**content, "seed": seed, "metrics": metrics})
    return found


def pictured(run: Path, task: Classification, teacher: Normalized) -> dict[str, float]:
    """The signals of the teacher's inside, from the images in a run's last picture."""
    files = sorted((run / "samples").glob("*.png"))
    picture = read_picture(files[-1]) if files else None
    columns = [] if picture is None else cells(picture, task.image_size)
    if not columns:
        return {}
    found = health_metrics(task, teacher, teacher, torch.stack([to_tensor(column[0]) for column in columns]))
    return {name: found[name] for name in ("held_out_feature_diversity", "statistics_distance")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; with more than one, a thread for each")
    parser.add_argument("--work", type=Path, default=Path("work/health-cpu"))
    parser.add_argument("--data", type=Path, default=FASHION, help=f"Fashion-MNIST's gzip files, default {FASHION}")
    parser.add_argument("--finished", type=Path, nargs="+", default=[], help="work folders of classification.py")
    parser.add_argument("--max-time", default="1000h", help="stop cleanly after this long (9m, 90s, 2h)")
    parser.add_argument("--collect-only", action="store_true", help="only write the results from finished cells")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return run_one((asked.one[0], int(asked.one[1])), asked.work, asked.data, seconds(asked.max_time))
    rows = list(rows_of(SIZES["cpu"]))
    if not asked.collect_only:
        if fault := missing_data(SIZES["cpu"], rows, asked.data):
            print(f"error: {fault}", file=sys.stderr)
            return 2
        wanted = [(row, seed) for seed in asked.seeds for row in rows]
        script = [sys.executable, __file__, "--work", str(asked.work), "--data", str(asked.data)]
        code = run_cells(script, wanted, asked.work, max_time=seconds(asked.max_time), jobs=asked.jobs, keep_going=True)
        if code:
            return code
    short_runs, finished = read_cells(asked.work, rows), read_finished(asked.finished)
    command = f"python benchmarks/health.py --seeds {' '.join(map(str, asked.seeds))}"
    path = write_results(
        "health", "cpu", {**short_runs, **finished}, command=command + " --finished WORK" * bool(finished)
    )
    text = table([c for cells in short_runs.values() for c in cells], [c for cells in finished.values() for c in cells])
    write_table("health.md", "health-cpu", text)
    judged = verdicts([cell for each in (finished or short_runs).values() for cell in each])
    write_table("health.md", "verdicts-cpu", judged)
    print(f"{path}\n{text}\n{judged}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
