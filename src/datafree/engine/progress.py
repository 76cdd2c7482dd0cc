"""Progress of a run or other long work for displays: its phase, its step, the rate, which metrics are shown first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

SAVED_WITHIN = 600  # seconds: the state is saved at least so often, however long `save_every` steps take


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is, for displays."""

    # images, scores: of a data set, counted in images and not in steps; plan and the like: in parts, each called `what`
    phase: Literal["warm-up", "training", "images", "scores", "plan", "inspect", "calibrate", "export", "bench"]
    step: int
    first: int  # -warmup
    last: int  # steps
    rate: float  # steps (images) a second in this phase and this process; 0 when not yet known
    values: dict[str, float]
    what: str = ""  # that is being done at the moment


class Work:
    """Work other than a run's steps, told to a display as it goes on."""

    def __init__(
        self, phase: Literal["scores", "plan", "inspect", "export", "bench"], last: int, log: Callable[[Progress], None]
    ) -> None:
        """`last`: images or parts in all."""
        self._phase, self._last, self._log = phase, last, log
        self._began, self._parts = time.perf_counter(), 0

    def at(self, done: int, what: str = "") -> None:
        """So many are done; `what` is next."""
        done, passed = min(done, self._last), max(time.perf_counter() - self._began, 1e-9)
        self._log(
            Progress(
                phase=self._phase,
                step=done,
                first=0,
                last=self._last,
                rate=done / passed,
                values={},
                what=what,
            )
        )

    def next(self, what: str) -> None:
        """Another part begins."""
        self.at(self._parts, what)
        self._parts += 1


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
