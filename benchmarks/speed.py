"""How fast updates of sources and steps of the student are, against the bare passes of their networks.

    python benchmarks/speed.py                                # every group, those that are done left out
    python benchmarks/speed.py --only resnet34-18 pixels      # groups, by either part of their names
    python benchmarks/speed.py --max-time 9m                  # stops cleanly; the same command resumes
    python benchmarks/speed.py --profile                      # also where a profiler finds the time

PAIR/METHOD: the floor of a step is the forward and backward passes that its formula needs: run alone, one after
another, on batches of the same sizes, by copies of the networks in the same modes. What is over it is losses,
optimisers, data and the loop. Both are timed in turns; the student's steps in the training loop itself. `over_floor`
is the median over rounds of the ratios (`_low`, `_high`: quartiles), `images_per_second` those that an update puts out
or the student learns from. Updates of many iterations are timed with a few of them; their images per second are scaled
to all, but for DIODE, which is given few: `image_iterations_per_second` counts each image as often as it was changed.

pixels/resnet50 and switches/PAIR: what each speed-up is worth (speed_forms.py). agreement/RECIPE: seconds until student
and teacher agree, with all of them and with none. All ratios are of one process and one run.

Each group leaves a file in the work folder; results/speed-DEVICE.json and the table in docs/results.md are written when
all groups are there, and by --collect-only of those that are.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import cells
from datafree.errors import Interrupted
from datafree.networks.load import NetworkSpec
from datafree.ops import modes
from results import commit, write_results, write_table
from speed_forms import measure_agreement, measure_pixels, measure_switches
from speed_rigs import FROM_A_BANK, PAIRS, QUICK, READ, make_rig
from speed_timing import REST, Metrics, Stop, measure_step, measure_update, never, profiled

AGREEMENT = 0.6  # of images, in agreement/RECIPE: a tenth of the run; 0.8 takes most of it
GROUPS = (
    *(f"{pair}/{method}" for pair in PAIRS for method in PAIRS[pair].rows),
    "pixels/resnet50",
    "switches/resnet34-18",
    "agreement/fashion-cgdd",
)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of a processor, that matter for speed
TINY = NetworkSpec(network="datafree/resnet", args={"depth": 8, "width": 4})


def measure(
    group: str,
    photos: Path,
    rounds: int,
    device: torch.device,
    *,
    stop: Stop = never,
    quick: bool = False,
    profile: bool = False,
) -> dict[str, Metrics]:
    """Row -> metrics of a group. `quick`: of small networks. Raises Interrupted when `stop` says so."""
    first, second = group.split("/")
    pairs = QUICK if quick else PAIRS
    found: dict[str, Metrics]
    if first == "pixels":
        small: dict[str, Any] = {"spec": TINY, "side": 16, "batch": 2, "classes": 5} if quick else {}
        found = measure_pixels(device, rounds, stop, **small)
    elif first == "switches":
        found = measure_switches(pairs[second], "cgdd", photos, device, rounds, stop)
    elif first == "agreement":
        words = ("training.steps=2", "source.warmup=1", "training.batch_size=4") if quick else ()
        found = measure_agreement(second, AGREEMENT, device, stop, *words)
    else:
        rig, found = make_rig(pairs[first], second, photos, device), {}
        if second in FROM_A_BANK:
            rig.attach()
        else:  # first, for the loop attaches the source
            found["student_step"] = measure_step(rig, rounds, stop, profile=profile)
        if second not in READ:
            found["update"] = measure_update(rig, rounds, stop)
            if profile:
                found["update"] |= profiled(rig)
    order = ("update", *(row for row in found if row != "update"))
    return {f"{group}/{row}": found[row] for row in order if row in found}


def run_group(group: str, work: Path, rounds: int, device: torch.device, stop: Stop, *, profile: bool) -> bool:
    """Measure a group and leave its rows in the work folder; whether it came to its end."""
    forget_peak(device)
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(group, make_photos(Path(folder) / "photos"), rounds, device, stop=stop, profile=profile)
    except Interrupted as error:
        print(f"{error}; the same command resumes", flush=True)
        return False
    taken = {"seconds": time.perf_counter() - began, "peak_memory_mib": peak(device), "commit": commit()}
    file = _file_of(work, group)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps({name: {"metrics": values, **taken} for name, values in rows.items()}))
    aside.replace(file)
    for name, values in rows.items():
        print(name, {key: round(value, 3) for key, value in values.items()}, flush=True)
    return True


def _file_of(work: Path, group: str) -> Path:
    return work / f"{group}.json"


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (mark := Path("/proc/self/clear_refs")).exists():
        mark.write_text("5")  # Linux: the process's peak starts anew


def peak(device: torch.device) -> float:
    """MiB: on the GPU, else of the process since `forget_peak` where the system can tell."""
    status = Path("/proc/self/status")
    if device.type != "cuda" and status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return cells.peak_memory_mib()


def make_photos(folder: Path) -> Path:
    """Photos to read, as a user's are."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(64):
        pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((170, 128), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")
    return folder


def chosen_groups(asked: Sequence[str]) -> list[str]:
    """The groups asked for by name or either part of it, in order; all if none is. Raises ValueError for another."""
    wrong = [word for word in asked if not any(word in (group, *group.split("/")) for group in GROUPS)]
    if wrong:
        raise ValueError(f"there is no group {wrong[0]!r}; known: {', '.join(GROUPS)}")
    return [group for group in GROUPS if not asked or {group, *group.split("/")} & set(asked)]


# What is written.


def processor_flags() -> dict[str, bool]:
    """Whether the processor has what makes bf16 fast, and the vectors that all else is computed with."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text(encoding="ascii", errors="replace").split()) if path.exists() else set()
    return {flag: flag in words for flag in FLAGS}


def collect(work: Path, device: torch.device, command: str) -> None:
    """Write the results and the tables from the groups that are there."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for group in GROUPS:
        if (file := _file_of(work, group)).exists():
            rows |= {name: [cell] for name, cell in json.loads(file.read_text()).items()}
    size = device.type
    write_results("speed", size, rows, command=command, hardware={"flags": processor_flags()})
    write_table("results.md", f"speed-{size}", table(rows))


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line for each row; one table for each kind of ratio."""
    values = {name: cell["metrics"] | {"memory": cell["peak_memory_mib"]} for name, (cell,) in rows.items()}
    kinds: tuple[tuple[str, str, Callable[[Metrics], list[str]]], ...] = (
        (
            "over_floor",
            "networks / method / step | over bare passes | images a second | x iterations | in networks "
            "| most of the rest | MB",
            _floor,
        ),
        ("times_as_fast", "pixels | times as fast | images a second", _speed),
        ("times_as_long_without", "an update without | takes times as long", lambda found: []),
        ("agreement", "speed-ups | seconds | steps | agreement", _agreement),
    )
    parts = []
    for key, heading, more in kinds:
        lines = [f"| {heading} |", "|---" * (heading.count("|") + 1) + "|"]
        for name, found in values.items():
            if key in found:
                ratio = [] if key == "agreement" else [_ratio(found, key)]
                lines.append(f"| {' | '.join([name, *ratio, *more(found)])} |")
        if len(lines) > 2:
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _ratio(found: Metrics, key: str) -> str:
    return f"{found[key]:.2f} ({found[key + '_low']:.2f}–{found[key + '_high']:.2f})"


def _rate(found: Metrics, key: str = "images_per_second") -> str:
    each = found[key]
    return f"{each:,.0f}" if each >= 100 else f"{each:.3g}"


def _floor(found: Metrics) -> list[str]:
    own = f"{100 * found['in_networks']:.0f} %" if "in_networks" in found else "–"
    changed = _rate(found, "image_iterations_per_second") if "image_iterations_per_second" in found else "–"
    rest = [f"{name.removeprefix(REST)} {100 * share:.0f} %" for name, share in found.items() if name.startswith(REST)]
    return [_rate(found), changed, own, ", ".join(rest[:3]) or "–", f"{found['memory']:.0f}"]


def _speed(found: Metrics) -> list[str]:
    return [_rate(found)]


def _agreement(found: Metrics) -> list[str]:
    return [f"{found['seconds']:.0f}", f"{found['steps']:.0f}", f"{100 * found['agreement']:.0f} %"]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="also where a profiler finds the time")
    parser.add_argument("--max-time", default="1000h", help="stop cleanly after this long (9m, 90s, 2h)")
    parser.add_argument("--work", type=Path, help="default: work/speed-DEVICE")
    parser.add_argument("--collect-only", action="store_true", help="only write results and tables of finished groups")
    parser.add_argument("--quick", action="store_true", help="small networks, one round; writes nothing")
    given = parser.parse_args(words)
    try:
        groups, limit = chosen_groups(given.only), cells.seconds(given.max_time)
    except ValueError as error:
        parser.error(str(error))
    device = modes.choose_device(given.device)
    work = given.work or Path("work") / f"speed-{device.type}"
    print("processor:", ", ".join(f"{flag} {'yes' if has else 'no'}" for flag, has in processor_flags().items()))
    if given.quick:
        with tempfile.TemporaryDirectory() as folder:
            photos = make_photos(Path(folder) / "photos")
            for group in groups:
                print(*measure(group, photos, 1, device, quick=True, profile=given.profile).items(), sep="\n")
        return 0
    began = time.monotonic()

    def stop() -> str | None:
        return "time is up" if time.monotonic() - began > limit else None

    for group in () if given.collect_only else groups:
        done = _file_of(work, group).exists()
        if not done and not run_group(group, work, given.rounds, device, stop, profile=given.profile):
            return cells.TIME_UP
    command = shlex.join(["python", "benchmarks/speed.py", *(word for word in words if word != "--collect-only")])
    if given.collect_only or all(_file_of(work, group).exists() for group in GROUPS):
        collect(work, device, command)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
