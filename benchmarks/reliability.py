"""What docs/reliability.md promises, measured: kills, torn saves, full disks, injected faults, hostile files, a soak.

    python benchmarks/reliability.py                        # all of it: some two hours on two cores
    python benchmarks/reliability.py --parts kills soak     # only these
    python benchmarks/reliability.py --collect-only         # only write the results from what is there

Each part leaves WORK/PART.json; together they become benchmarks/results/reliability.json. Full disks need a small tmpfs
(root), torn saves need strace; without them that part says so in its figures, and the others run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: no threads of torch's own
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch

from datafree.storage.environment import environment
from reliability_cases import cases, memory, numbers, stops
from reliability_disks import disks
from reliability_kills import kills
from reliability_saves import saves
from reliability_soak import soak
from results import HERE, commit, write_table

PARTS = ("kills", "saves", "disks", "numbers", "memory", "stops", "cases", "soak")
RESULTS = HERE / "results" / "reliability.json"


def parts(given: argparse.Namespace) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Each part's name, and what runs it in a folder of its own."""
    return {
        "kills": lambda folder: kills(folder, given.kills, given.seed),
        "saves": saves,
        "disks": disks,
        "numbers": numbers,
        "memory": memory,
        "stops": stops,
        "cases": lambda folder: cases(folder, given.cases),
        "soak": lambda folder: soak(folder, given.soak_minutes * 60),
    }


def main() -> int:
    """Run what is asked for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cases", type=int, default=10_000, help="at least, over all kinds of files")
    parser.add_argument("--soak-minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("work/reliability"))
    parser.add_argument("--collect-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    for name, run in {} if given.collect_only else parts(given).items():
        if given.parts and name not in given.parts:
            continue
        began = time.monotonic()
        figures = run(given.work.resolve() / name)
        about = {"command": " ".join(["python", *sys.argv]), "commit": commit(), "date": date.today().isoformat()}
        figures = {**about, "seconds": round(time.monotonic() - began, 1), **figures}
        (given.work / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return collect(given.work)


def collect(work: Path) -> int:
    """Write the results from the parts that are there."""
    here = environment()
    found = {file.stem: json.loads(file.read_text()) for file in sorted(work.glob("*.json"))}
    content = {"benchmark": "reliability", "hardware": here["hardware"], "versions": here["versions"], "parts": found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    write_table("reliability.md", "reliability", table(found))
    broken = [f"{name}: {line}" for name, figures in found.items() for line in figures.get("broken", [])]
    print("\n".join(broken) or f"every promise held; figures in {RESULTS}")
    return 1 if broken else 0


def table(found: dict[str, dict[str, Any]]) -> str:
    """A line for each part that was run, as Markdown."""
    lines = ["| part | figures |", "|---|---|"]
    for name, part in found.items():
        broken = f"; broken: {len(part['broken'])}" if part.get("broken") else ""
        lines.append(f"| {name} | {_told(name, part)}{broken} |")
    return "\n".join(lines) + "\n"


def _told(name: str, part: dict[str, Any]) -> str:
    if "skipped" in part and isinstance(part["skipped"], str):
        return f"not run: {part['skipped']}"
    if name == "kills":
        phases = ", ".join(f"{phase} {count}" for phase, count in sorted(part["phases"].items()))
        return f"{part['went_on_to_the_same_bits']} of {part['kills']} went on to the same bits ({phases})"
    if name == "saves":
        return ", ".join(f"{what}: killed at {calls['kills']} calls" for what, calls in part["killed_calls"].items())
    if name == "cases":
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in part["by_kind"].items())
        return f"{part['cases']:,} cases ({kinds}), {part.get('failed', 0)} failed"
    if name == "soak":
        memory, used, files, threads = (part[what] for what in ("resident_mib", "in_use_mib", "open_files", "threads"))
        return (
            f"{part['runs']} runs in {part['minutes']:.0f} minutes; resident memory {memory['first']:.0f} to "
            f"{memory['last']:.0f} MiB ({part['resident_mib_per_hour']:+.1f} an hour), of it in use "
            f"{used['first']:.1f} to {used['last']:.1f} ({part['in_use_mib_per_hour']:+.1f} an hour), open files "
            f"{files['first']:.0f} to {files['last']:.0f}, threads {threads['first']:.0f} to {threads['last']:.0f}"
        )
    return ", ".join(f"{part[what]} {what}" for what in ("passed", "failed", "error", "skipped") if part.get(what))


if __name__ == "__main__":
    sys.exit(main())
