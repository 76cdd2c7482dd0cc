"""Whether two processes learn as one does: curves of the student's loss over seeds, of a small network.

S seeds, T lines of the log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

RECIPE = "fashion-cgdd"
SMALL = ("source.width=4", "source.batch_size=8", "source.warmup=20", "source.bank_size=400", "training.batch_size=8")
STEPS = 300
EVERY = 10  # steps between two lines of the log
SEEDS = (0, 1, 2)


def loss_curve(folder: Path, seed: int, processes: int, steps: int) -> list[float]:
    """(T,) losses of a run, as its log has them."""
    out = folder / f"{processes}-{seed}"
    options = [f"training.seed={seed}", f"training.steps={steps}", f"training.log_every={EVERY}", *SMALL, "data=null"]
    shared = [*options, "training.data_parallel=divided"]
    command = [sys.executable, "-P", "-m", "datafree", "distill", RECIPE, "--out", str(out), "--quiet"]
    subprocess.run(
        [*command, "--processes", str(processes), *shared], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def measure(folder: Path, seeds: Sequence[int] = SEEDS, steps: int = STEPS) -> dict[str, float]:
    """Of the logarithms of losses: how far the means over seeds of one and of two processes are `apart`, and the
    `spread` over the seeds, both as root mean squares over the log's lines; `expected`, of `apart`, were there no
    difference; and the last losses."""
    curves = torch.tensor([[loss_curve(folder, seed, count, steps) for seed in seeds] for count in (1, 2)]).double()
    return compared(curves)


def compared(curves: torch.Tensor) -> dict[str, float]:
    """The same, from losses (2, S, T)."""
    logs = curves.log()
    means, variances = logs.mean(1), logs.var(1)  # (2, T)
    spread = float(variances.mean().sqrt())
    return {
        "apart": float((means[1] - means[0]).square().mean().sqrt()),
        "spread": spread,
        "expected": spread * (2 / curves.shape[1]) ** 0.5,  # two means of S values each
        "last_loss_one": float(curves[0, :, -1].mean()),
        "last_loss_two": float(curves[1, :, -1].mean()),
    }
