"""Everything that only a GPU can tell, in one command that stops in time and resumes: is it right, fast, and enough?

    python benchmarks/gpu.py --max-time 8m                    # on the GPU there is; the same command resumes
    python benchmarks/gpu.py --max-time 8m --device cpu       # the same on the CPU, with small networks
    python benchmarks/gpu.py --only correct waits             # parts, or names of rows

Parts, in this order, each row left in the work folder once it is done:

correct/PAIR/METHOD/PRECISION: an update, its images and a student's step against the CPU's (gpu_correct.py says how).
waits/PAIR/METHOD: how often a step makes the host wait, which it should not; CUDA only, whose debug mode counts them.
batch: the batch size that `auto` finds, by steps that are taken for real, or counted on a CPU.
several: two processes with a device each (NCCL; gloo on the CPU) against one: speed, and whether students are the same.
speed/PAIR/METHOD: updates and steps against bare passes, timed by CUDA events; with a profiler's share of the time that
the networks' own kernels take; peak memory (speed.py).
papers: as much of `classification.py --size paper` as time allows, which resumes by itself; its results are its own.

A row that fails or is wrong is told and tried again by the next call; the others go on. Exit status: 0 if all was done
and is right, 1 if a row failed or is beyond its tolerance, 75 if time was up before the end. The rows are in
results/gpu-cuda.json; those of another device in the work folder.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cells
import speed
from datafree.engine import out_of_memory
from datafree.errors import Interrupted
from datafree.ops import modes
from gpu_correct import GROUPS, compare
from gpu_parts import search_batch, several, waits_of
from results import HERE, commit, write_results
from speed_rigs import QUICK, make_rig
from speed_timing import Metrics, Stop

WAITED = ("small/cgdd", "small/fast", "small/dafl", "small/procedural", "small/folder", "yolov3-tiny/cgdd")
TIMED = (  # of speed.GROUPS, what tells most first
    "resnet34-18/cgdd", "resnet34-18/fast", "pixels/resnet50", "deeplabv3/degan", "yolov3-tiny/diode",
    "fastestdet/diode", "resnet34-18/cmi", "resnet34-18/inversion", "deeplabv3/inversion", "yolov3/diode",
    "retinanet/diode", "resnet34-18/dafl", "resnet34-18/dfad", "resnet34-18/zskt", "unet/degan", "yolov3-tiny/cgdd",
    "switches/resnet34-18",
)  # fmt: skip
NO_DATA = 2  # exit status of a benchmark whose images are not on this machine
QUICKLY = ("resnet34-18/cgdd", "pixels/resnet50", "yolov3-tiny/diode")  # on a CPU


@dataclass(frozen=True, kw_only=True)
class Row:
    """Something to find out, by name; `measure` returns its metrics, None where the device has nothing to tell."""

    name: str
    measure: Callable[[Stop], dict[str, Metrics] | None]


def rows(device: torch.device, folder: Path, rounds: int) -> list[Row]:
    """All rows for a device, in order; `folder` takes what they read."""
    quick = device.type != "cuda"

    def photos(name: str) -> Path:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place / "photos" if (place / "photos").exists() else speed.make_photos(place / "photos")

    def correct(group: str, precision: Any) -> Row:
        name = f"correct/{group}/{precision}"
        return Row(name=name, measure=lambda stop: {name: compare(group, photos, device, precision)})

    def waited(group: str) -> Row:
        name, (pair, method) = f"waits/{group}", group.split("/")

        def measure(stop: Stop) -> dict[str, Metrics] | None:
            if device.type != "cuda":
                return None
            rig = make_rig(QUICK[pair], method, photos(name), device)
            return {name: waits_of(rig, torch.cuda.set_sync_debug_mode)}

        return Row(name=name, measure=measure)

    def timed(group: str) -> Row:
        def measure(stop: Stop) -> dict[str, Metrics]:
            place, small = photos(f"speed/{group}"), quick
            found = speed.measure(group, place, rounds, device, stop=stop, quick=small, profile=True)
            return {f"speed/{name}": values for name, values in found.items()}

        return Row(name=f"speed/{group}", measure=measure)

    def together(stop: Stop) -> dict[str, Metrics] | None:
        if device.type == "cuda" and torch.cuda.device_count() < 2:
            return None
        return {"several": several(device.type, 2, quick=quick)}

    precisions = ("fp32", "fp64", "bf16")
    return [
        *(correct(group, precision) for precision in precisions for group in GROUPS),
        *(waited(group) for group in WAITED),
        Row(name="batch", measure=lambda stop: {"batch": search_batch(device, quick=quick)}),
        Row(name="several", measure=together),
        *(timed(group) for group in (QUICKLY if quick else TIMED)),
    ]


def chosen(every: Sequence[Row], asked: Sequence[str]) -> list[Row]:
    """The rows whose name is, or begins with, one of those asked for; all if none is. Raises ValueError."""
    names = [row.name for row in every] + ["papers"]
    wrong = [word for word in asked if not any(_is_of(name, word) for name in names)]
    if wrong:
        raise ValueError(
            f"there is no row {wrong[0]!r}; known: {', '.join(dict.fromkeys(n.split('/')[0] for n in names))}"
        )
    return [row for row in every if not asked or any(_is_of(row.name, word) for word in asked)]


def _is_of(name: str, word: str) -> bool:
    return name == word or name.startswith(f"{word}/")


def run_row(row: Row, work: Path, device: torch.device, stop: Stop) -> bool:
    """Measure a row that is not done, or was wrong, and leave its file; whether it is done. Raises Interrupted."""
    file = work / f"{row.name}.json"
    if file.exists() and not any(is_wrong(cell["metrics"]) for cell in json.loads(file.read_text()).values()):
        return True
    speed.forget_peak(device)
    began = time.perf_counter()
    try:
        found = row.measure(stop)
    except Interrupted:
        raise
    except Exception:  # whatever a device that nobody has tried raises: the other rows' minutes are precious
        traceback.print_exc()
        print(f"FAILED {row.name}", flush=True)
        return False
    finally:
        out_of_memory.release()
    taken = {"seconds": time.perf_counter() - began, "peak_memory_mib": speed.peak(device), "commit": commit()}
    content = {name: {"metrics": values, **taken} for name, values in (found or {}).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(content))
    aside.replace(file)
    for name, values in (found or {}).items():
        shown = " ".join(f"{key} {value:.3g}" for key, value in values.items())
        print(f"{'BEYOND ITS TOLERANCE ' if is_wrong(values) else ''}{name}: {shown}", flush=True)
    return True


def is_wrong(values: Metrics) -> bool:
    """Whether a row's metrics say that the device does not compute what the CPU does."""
    return values.get("within") == 0.0 or values.get("same") == 0.0


def run_papers(size: str, work: Path, seconds: float) -> int:
    """As much of the papers' sizes as `seconds` allow; the benchmark's exit status, TIME_UP if there is more."""
    if seconds < cells.LEAST:
        return cells.TIME_UP
    command = [sys.executable, str(HERE / "classification.py"), "--size", size, "--work", str(work)]
    return subprocess.run([*command, "--max-time", f"{seconds:.0f}s", "--seeds", "0"], check=False).returncode


def collect(every: Sequence[Row], work: Path, device: torch.device, command: str) -> dict[str, list[dict[str, Any]]]:
    """Write what is there in the benchmarks' common form, and return its rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in every:
        if (file := work / f"{row.name}.json").exists():
            found |= {name: [cell] for name, cell in json.loads(file.read_text()).items()}
    write_results(
        "gpu", device.type, found, command=command, hardware={"devices": torch.cuda.device_count()},
        folder=HERE / "results" if device.type == "cuda" else work,
    )  # fmt: skip
    return found


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows, or the first parts of their names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-time", default="1000h", help="stop cleanly after this long (9m, 90s, 2h)")
    parser.add_argument("--work", type=Path, help="default: work/gpu-DEVICE")
    parser.add_argument("--papers", default="", help="size of classification.py; default: paper, none on a CPU")
    given = parser.parse_args(words)
    began = time.monotonic()
    device = modes.choose_device(given.device)
    work = given.work or Path("work") / f"gpu-{device.type}"
    with tempfile.TemporaryDirectory() as folder:
        every = rows(device, Path(folder), given.rounds)
        try:
            asked, limit = chosen(every, given.only), cells.seconds(given.max_time)
        except ValueError as error:
            parser.error(str(error))

        def stop() -> str | None:
            return "time is up" if time.monotonic() - began > limit else None

        done, up = True, False
        for row in asked:
            try:
                if reason := stop():
                    raise Interrupted(reason)
                done &= run_row(row, work, device, stop)
            except Interrupted as reason:
                print(f"{reason}; the same command resumes", flush=True)
                up = True
                break
    command = shlex.join(["python", "benchmarks/gpu.py", *words])
    wrong = [name for name, (cell,) in collect(every, work, device, command).items() if is_wrong(cell["metrics"])]
    for name in wrong:
        print(f"beyond its tolerance: {name}", flush=True)
    size = given.papers or ("paper" if device.type == "cuda" else "")
    wanted = bool(size) and (not given.only or "papers" in given.only)
    papers = run_papers(size, work / "papers", limit - (time.monotonic() - began)) if wanted and not up else 0
    if papers == NO_DATA:
        print("the papers' sizes were left out, see above", flush=True)
    if not done or wrong or papers not in (0, cells.TIME_UP, NO_DATA):
        return 1
    return cells.TIME_UP if up or papers == cells.TIME_UP else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
