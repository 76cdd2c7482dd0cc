"""The three built-in examples over and over in one process: memory, open files and threads after each round."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import threading
import time
from pathlib import Path
from statistics import linear_regression
from typing import Any

from datafree.cli.demo import DEMOS
from datafree.recipe.recipe import load_recipe
from datafree.run import run_recipe

WARM = 3  # rounds that fill caches and pools, not counted


def soak(folder: Path, seconds: float) -> dict[str, Any]:
    """Repeat each example's method and baseline, shortened as by `datafree demo --quick`, for so many seconds.

    Answers figures of all rounds but the first WARM: resident memory, and the part of it that the C library has handed
    out and not got back (`in_use_mib`; the rest is what it keeps for later), in MiB; open files, threads, objects that
    Python's collector knows.
    """
    recipes = [(name, short) for pair in DEMOS.values() for name, short in pair.items()]
    began = time.monotonic()
    rounds: list[dict[str, float]] = []
    while time.monotonic() - began < seconds or len(rounds) < WARM + 2:
        for name, short in recipes:
            run_recipe(load_recipe(name, short), folder / name)
            shutil.rmtree(folder / name)
        gc.collect()
        time.sleep(1)  # threads whose owner has just gone take a moment to end
        rounds.append({"seconds": time.monotonic() - began, **_figures()})
        print(f"soak: round {len(rounds)}, {rounds[-1]}", flush=True)
    counted = rounds[WARM:]
    hours = [figures["seconds"] / 3600 for figures in counted]
    slopes = {
        f"{name}_per_hour": round(linear_regression(hours, [figures[name] for figures in counted]).slope, 2)
        for name in ("resident_mib", "in_use_mib")
    }
    return {
        "examples": [name for name, _ in recipes],
        "minutes": round(rounds[-1]["seconds"] / 60, 1),
        "rounds": len(rounds),
        "runs": len(rounds) * len(recipes),
        "warm_rounds": WARM,
        **slopes,
        **{
            name: {"first": counted[0][name], "last": counted[-1][name], "most": max(r[name] for r in counted)}
            for name in ("resident_mib", "in_use_mib", "open_files", "threads", "objects")
        },
    }


def _figures() -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "in_use_mib": round(_in_use() / 2**20, 1),
        "open_files": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


class _Mallinfo(ctypes.Structure):
    """The `struct mallinfo2` of glibc. hblkhd: bytes in blocks mapped one by one; uordblks: handed out from arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


def _in_use() -> int:
    """Bytes that malloc has handed out, to anyone in the process; 0 where the C library cannot say (glibc 2.33 can)."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = _Mallinfo
    known = mallinfo()
    return int(known.uordblks + known.hblkhd)
