"""Progress of a run for displays: its phase, its step, the step rate, which metrics are shown first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

SAVED_WITHIN = 600  # seconds: the state is saved at least so often, however long `save_every` steps take


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is, for displays."""

    phase: Literal["warm-up", "training", "images"]  # images: a data set, counted in images and not in steps
    step: int
    first: int  # -warmup
    last: int  # steps
    rate: float  # steps (images) a second in this phase and this process; 0 when not yet known
    values: dict[str, float]


class StepRate:
    """Steps a second, of a phase's own steps: what the warm-up took says nothing of the student's."""

    def __init__(self, step: int) -> None:
        """The clock starts at `step`, negative in the warm-up."""
        self._began, self._from = time.perf_counter(), step

    def at(self, step: int) -> float:
        """The rate when `step` is reached; 0 where a phase begins."""
        if step > 0 > self._from:
            self._began, self._from = time.perf_counter(), step
        return (step - self._from) / max(time.perf_counter() - self._began, 1e-9)


def place(step: int, first: int, last: int) -> str:
    """Where a run is, in words: "in the warm-up, update 1 of 9,400" or "at step 5 of 3,000"."""
    if step < 0:
        return f"in the warm-up, update {step - first:,} of {-first:,}"
    return f"at step {step:,} of {last:,}"


FIRST = ("loss", "class_balance", "pixel_diversity", "teacher_ap50", "verifier_ap50")  # of these, where they are logged
