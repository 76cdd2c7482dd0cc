"""The three built-in examples over and over in one process: memory, open files and threads after each round."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch

from datafree.demos import DEMOS
from datafree.job import run_recipe
from datafree.recipe import load_recipe

WARM = 3  # rounds that fill caches and pools, not counted


def soak(folder: Path, seconds: float) -> dict[str, Any]:
    """Repeat each example's method and baseline, shortened as by `datafree demo --quick`, for so many seconds.

    Answers figures of all rounds but the first WARM: resident memory in MiB, open files, threads, tensors alive.
    """
    recipes = [(name, short) for pair in DEMOS.values() for name, short in pair.items()]
    began = time.monotonic()
    rounds: list[dict[str, float]] = []
    while time.monotonic() - began < seconds or len(rounds) < WARM + 2:
        for name, short in recipes:
            run_recipe(load_recipe(name, short), folder / name)
            shutil.rmtree(folder / name)
        gc.collect()
        rounds.append({"seconds": time.monotonic() - began, **_figures()})
        print(f"soak: round {len(rounds)}, {rounds[-1]}", flush=True)
    counted = rounds[WARM:]
    slope = linear_regression([r["seconds"] / 3600 for r in counted], [r["resident_mib"] for r in counted]).slope
    return {
        "examples": [name for name, _ in recipes],
        "minutes": round(rounds[-1]["seconds"] / 60, 1),
        "rounds": len(rounds),
        "runs": len(rounds) * len(recipes),
        "warm_rounds": WARM,
        "resident_mib_per_hour": round(slope, 2),
        **{
            name: {"first": counted[0][name], "last": counted[-1][name], "most": max(r[name] for r in counted)}
            for name in ("resident_mib", "open_files", "threads", "tensors")
        },
    }


def _figures() -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "open_files": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
        "threads": threading.active_count(),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
    }
