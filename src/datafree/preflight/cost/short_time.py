"""Times too short to teach: how few steps they hold, in a line, and a time that holds enough of them."""

from __future__ import annotations

import math

import torch

from datafree.config.duration import duration_of
from datafree.health.verdict import ENOUGH_STEPS, FEW_STEPS, little
from datafree.networks.normalized import Normalized, device_of
from datafree.ops import modes
from datafree.preflight.cost.estimate import timed
from datafree.tasks.base import synthetic_batch

FEW, ENOUGH = FEW_STEPS, ENOUGH_STEPS  # below the first a student has hardly learned
_TIMED = 2  # images of an answer that is timed


def too_few(time: str, steps: int, seconds: float, *, at_most: bool = False) -> str:
    """What a time of so few steps is worth; `seconds`: of one of ENOUGH steps; `at_most`: if answers were all."""
    holds = f"holds{' at most' if at_most else ''}" if steps else "is less than"
    return f"{time} {holds} {little(max(1, steps))}: some {ENOUGH:,} take {_rounded(seconds)} or more here (--time)"


def _rounded(seconds: float) -> str:
    """Up to whole minutes, from two on; to quarters of an hour from two hours on."""
    unit = 1 if seconds < 120 else 60 if seconds < 7200 else 900
    return duration_of(unit * math.ceil(seconds / unit))


def answers_alone(network: Normalized, size: tuple[int, int], batch: int) -> float:
    """Seconds that a teacher's answers to one batch take, the least that a step of the student does."""
    device = device_of(network)
    images = synthetic_batch(size, device)[:_TIMED]
    with torch.no_grad(), modes.frozen(network):
        return timed(lambda: network(images), device, times=1) / len(images) * batch
