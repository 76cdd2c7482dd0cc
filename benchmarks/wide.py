"""What two processes make of two cores: updates of sources and steps of the student, batches shared out.

    python benchmarks/wide.py                     # every row, those that are done left out; the machine must be idle
    python benchmarks/wide.py --rows fastestdet   # rows, by any part of their names
    python benchmarks/wide.py --max-time 9m       # stops cleanly between rows; the same command resumes

PAIR/METHOD/step and PAIR/METHOD/update, with networks as in speed.py, each process on one thread. In each round the
first process works alone on whole batches, while the other waits; then both on half of each batch, in the ways of
`WAYS`; a round of each is some two seconds. Metrics of each way: WAY, the median over rounds of the seconds alone, over
those of the slower of both, over 2 (`_low`, `_high`: quartiles); WAY_processor: of the processor's seconds alone, over
those of both together, which leaves out what they wait, and holds on a busy machine. So much for a batch that is shared
out. For one that grows with the processes, WAY_same_part: the first process alone on the half, over the slower of both
on a half each. A step is what the loop does:
images of the source, their answers, the loss, the optimiser, looks for numbers that are not finite, the question
whether to stop.

curves: losses of runs with one and with two processes, over seeds (wide_curves.py).

Each row leaves a file in the work folder; results/wide-cpu.json and the table in docs/scale.md are written when all are
there, and by --collect-only of those that are.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

import cells
import wide_curves
from datafree.distributed import collectives, divided, replicas
from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.engine.shared_batches import part_of
from datafree.engine.student_step import StudentStep
from datafree.ops import modes
from results import commit, write_results, write_table
from speed import make_photos, peak, processor_flags
from speed_rigs import PAIRS, QUICK, make_rig
from speed_timing import over

ROWS = (
    "resnet34-18/cgdd/step",
    "resnet34-18/cgdd/update",
    "deeplabv3/degan/step",
    "deeplabv3/degan/update",
    "yolov3-tiny/cgdd/step",
    "yolov3-tiny/cgdd/update",
    "fastestdet/diode/step",
    "fastestdet/diode/update",
    "curves",
)
CHANGES: dict[str, dict[str, Any]] = {  # of speed.py's pairs
    "resnet34-18": {"image_size": (64, 64)},
    "deeplabv3": {"batch_size": {"cpu": 8}},
    "yolov3-tiny": {"batch_size": {"cpu": 8}},
    "fastestdet": {"batch_size": {"cpu": 16}},
}
WAYS = {
    "ceiling": "both by themselves: nothing is exchanged",
    "local_norms": "gradients are averaged; BatchNorm takes the statistics of its own part, as is usual elsewhere",
    "efficiency": "training.data_parallel=divided",
}
ALONE = ("alone", "half_alone")  # the first process by itself, on a whole batch and on its half of one
ROUND = 2.0  # seconds of the first process alone
CPU = torch.device("cpu")


# One process.


def make_work(row: str, photos: Path, *, quick: bool) -> Callable[[], object]:
    """An update or a step of this process's part of each batch, of all of it outside `divided.sharing`."""
    name, method, what = row.split("/")
    pair = QUICK[name] if quick else replace(PAIRS[name], **CHANGES[name])
    rig = make_rig(pair, method, photos, CPU)
    training, source = part_of(rig.training, rig.source)
    rig.training, rig.source = training, source
    for network in rig.networks.values():
        replicas.share(network)
    rig.networks["teacher"].eval().requires_grad_(False)
    rig.attach()
    divided.seed(0)
    student, watch, recovery = rig.networks["student"], Watch(CPU), Recovery()
    if what == "update":
        return lambda: source.update(student, 0)
    step = StudentStep(
        task=rig.task,
        teacher=rig.networks["teacher"],
        student=student,
        training=training,
        pairs={},
        optimizer=training.make_optimizer(student),
        watch=watch,
        recovery=recovery,
    )
    source.update(student, 0)  # a bank has something in it

    def learn() -> None:
        replicas.all_agree(None)
        watch.begin(0)
        step.learn(source.sample(training.batch_size), 0)
        watch.look()
        replicas.all_agree(None)

    return learn


@contextmanager
def in_way(way: str) -> Iterator[None]:
    """Within it, this process works alone, or together with the other as `way` says."""
    with ExitStack() as held:
        if way in (*ALONE, "ceiling"):
            held.enter_context(replicas.single_process())
        else:
            held.enter_context(divided.sharing(True))
        if way == "local_norms":
            held.enter_context(patch.object(replicas, "of_equal_parts", lambda images: nullcontext()))
        yield


def measure(rank: int, row: str, folder: Path, rounds: int, quick: bool) -> None:
    """One of the two processes; the first writes the row's metrics into `folder`."""
    torch.set_num_threads(1)
    modes.seed_everything(0)
    with collectives.process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2):
        found = measured_by(rank, row, folder, rounds, quick)
        if rank == 0:
            (folder / "metrics.json").write_text(json.dumps(found))
        dist.barrier()


def measured_by(rank: int, row: str, folder: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """What the row comes to, as one of the two processes sees it."""
    photos = make_photos(folder / f"photos-{rank}")
    with divided.sharing(True):
        shared = make_work(row, photos, quick=quick)
    works: dict[str, Callable[[], object]] = dict.fromkeys(ALONE, idle)
    if rank == 0:
        with in_way("alone"):
            works = {"alone": make_work(row, photos, quick=quick), "half_alone": shared}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in (*ALONE, *WAYS)}  # by the clock, processor's
    often = 1
    with collectives.over_lines(replicas.PATIENCE):
        for number in range(rounds + 1):  # the first warms up
            for way, found in seconds.items():
                dist.barrier()
                with in_way(way):
                    found.append(timed(works.get(way, shared), often))
                if way == "half_alone":  # then the other, so that both have made as many steps
                    dist.barrier()
                    with in_way(way):
                        timed(shared if rank else idle, often)
            if number == 0:
                told = [max(1, round(ROUND / seconds["alone"][0][1])) if rank == 0 and not quick else 1]
                dist.broadcast_object_list(told, src=0)
                often = told[0]
    every = divided.gathered_objects(seconds)
    metrics = compared([{way: times[1:] for way, times in one.items()} for one in every])
    metrics |= {name: value / often for name, value in metrics.items() if name.startswith("seconds_")}
    return {"metrics": metrics, "peak_memory_mib": peak(CPU)}


def idle() -> None:
    """What a process does while the other works alone."""


def compared(every: Sequence[dict[str, list[tuple[float, float]]]]) -> dict[str, float]:
    """Metrics from what rounds of each way took, by the clock and of the processor, in both processes."""
    alone, half = (every[0][way] for way in ALONE)
    metrics = {"seconds_alone": statistics.median(clock for clock, _ in alone)}
    for way in WAYS:
        rounds = list(zip(*(one[way] for one in every), strict=True))
        clock, processor = (
            [reduce(of[what] for of in both) for both in rounds] for what, reduce in ((0, max), (1, sum))
        )
        metrics |= over(way, [clock for clock, _ in alone], [2 * value for value in clock])
        metrics |= over(f"{way}_processor", [used for _, used in alone], processor)
        metrics |= over(f"{way}_same_part", [clock for clock, _ in half], clock)
        metrics |= {f"seconds_{way}": statistics.median(clock)}
    return metrics


def timed(work: Callable[[], object], often: int) -> tuple[float, float]:
    """Seconds by the clock and of this process's processor. Of two, the first to end has waited in each exchange."""
    began, used = time.perf_counter(), time.process_time()
    for _ in range(often):
        work()
    return time.perf_counter() - began, time.process_time() - used


# All rows.


def run_row(row: str, home: Path, rounds: int, *, quick: bool = False) -> None:
    """Measure a row in two processes and leave it in the work folder."""
    began = time.perf_counter()
    found: dict[str, Any]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if row == "curves":
            few: dict[str, Any] = {"seeds": (0, 1), "steps": 20} if quick else {}
            found = {"metrics": wide_curves.measure(folder, **few), "peak_memory_mib": peak(CPU)}
        else:
            start: Any = start_processes  # which has no types
            start(measure, (row, folder, rounds, quick), nprocs=2, start_method="spawn")
            found = json.loads((folder / "metrics.json").read_text())
    cell = {**found, "seconds": time.perf_counter() - began, "commit": commit()}
    file = _file_of(home, row)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(cell))
    aside.replace(file)
    print(row, {key: round(value, 3) for key, value in found["metrics"].items()}, flush=True)


def _file_of(work: Path, row: str) -> Path:
    return work / f"{row.replace('/', '-')}.json"


def chosen_rows(asked: Sequence[str]) -> list[str]:
    """The rows asked for by any part of their names, in order; all if none is. Raises ValueError for another."""
    wrong = [word for word in asked if not any(word in (row, *row.split("/")) for row in ROWS)]
    if wrong:
        raise ValueError(f"there is no row {wrong[0]!r}; known: {', '.join(ROWS)}")
    return [row for row in ROWS if not asked or {row, *row.split("/")} & set(asked)]


def collect(work: Path, command: str) -> None:
    """Write the results and the table from the rows that are there."""
    rows = {row: [json.loads(file.read_text())] for row in ROWS if (file := _file_of(work, row)).exists()}
    write_results("wide", "cpu", rows, command=command, hardware={"flags": processor_flags()})
    write_table("scale.md", "wide", table(rows))
    if "curves" in rows:
        write_table("scale.md", "wide_curves", curves_table(rows["curves"][0]["metrics"]))


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line for each row, of each way by the processor's time and by the clock."""
    ways = {"efficiency": "divided", "ceiling": "ceiling", "local_norms": "local BatchNorm"}
    kinds = {"": "clock", "_same_part": "clock, same part", "_processor": "processor"}
    heads = [f"{kind}: {name}" for kind in kinds.values() for name in ways.values()]
    lines = ["| " + " | ".join(["networks / method", "one process, s", "two, s", *heads]) + " |"]
    lines.append("|---|--:|--:" + 3 * "|---|--:|--:" + "|")
    for name, (cell,) in rows.items():
        if name == "curves":
            continue
        found = cell["metrics"]
        cells = [name, *(f"{found[key]:.3g}" for key in ("seconds_alone", "seconds_efficiency"))]
        for kind in kinds:
            first = f"efficiency{kind}"
            if first not in found:  # an earlier measurement
                cells += 3 * ["–"]
                continue
            cells.append(f"{found[first]:.2f} ({found[f'{first}_low']:.2f}–{found[f'{first}_high']:.2f})")
            cells += [f"{found[f'{way}{kind}']:.2f}" for way in ("ceiling", "local_norms")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def curves_table(found: dict[str, float]) -> str:
    """Markdown: one line."""
    heads = ["apart", "apart by chance", "spread over seeds", "last loss, one process", "two"]
    names = ("apart", "expected", "spread", "last_loss_one", "last_loss_two")
    cells = (f"{found[name]:.3f}" for name in names)
    return "\n".join(["| " + " | ".join(heads) + " |", "|--:|--:|--:|--:|--:|", "| " + " | ".join(cells) + " |"]) + "\n"


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-time", default="1000h", help="stop cleanly after this long (9m, 90s, 2h)")
    parser.add_argument("--work", type=Path, default=Path("work") / "wide-cpu")
    parser.add_argument("--collect-only", action="store_true", help="only write results and table of finished rows")
    given = parser.parse_args(words)
    try:
        rows, limit = chosen_rows(given.rows), cells.seconds(given.max_time)
    except ValueError as error:
        parser.error(str(error))
    until = time.monotonic() + limit
    for row in [] if given.collect_only else rows:
        if _file_of(given.work, row).exists():
            continue
        if time.monotonic() > until:
            print("--max-time reached; the same command resumes", flush=True)
            return cells.TIME_UP
        run_row(row, given.work, given.rounds)
    if given.collect_only or all(_file_of(given.work, row).exists() for row in ROWS):
        collect(given.work, shlex.join(["python", "benchmarks/wide.py", *words]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
