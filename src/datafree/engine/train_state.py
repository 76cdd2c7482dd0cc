"""The training state: what a checkpoint of a run holds, and how a resumed run gets back to the same bits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from datafree.distributed import divided, own_state
from datafree.engine.nonfinite import Watch
from datafree.engine.origin import compare
from datafree.engine.progress import SAVED_WITHIN
from datafree.engine.recovery import Recovery
from datafree.engine.weight_average import WeightAverage
from datafree.health.verdict import VerdictTracker
from datafree.ops import modes
from datafree.sources.base import ImageSource
from datafree.storage.shared_run import RunDirectory

SHORT = 1.0  # seconds of a save from which on it is left out now and then
SAVING = 0.05  # of the time, at most, that such saves take


@dataclass(frozen=True, kw_only=True)
class BestStudent:
    """The student that is kept so far."""

    step: int = 0
    agreement: float | None = None  # with the teacher on validation images (fraction of rows); None: there were none
    weights: dict[str, Any] = field(default_factory=dict)  # its state_dict; empty where the last student is kept


@dataclass(kw_only=True)
class TrainState:
    """Everything of a run that changes from step to step, and the checkpoint of it on the disk.

    Steps count from `-source.warmup` over 0, the student's first step, to `training.steps`.
    """

    run: RunDirectory
    student: nn.Module
    optimizer: torch.optim.Optimizer
    source: ImageSource
    recovery: Recovery
    watch: Watch
    average: WeightAverage = field(default_factory=WeightAverage)
    origin: dict[str, Any] = field(default_factory=dict)  # as `origin_of`; of the latest piece
    remarks: list[str] = field(default_factory=list)  # what of it was another from one piece to the next
    step: int = field(init=False)  # steps below it are done
    good_step: int = field(init=False)  # of the checkpoint on the disk
    saved_at: float = field(init=False)  # time.monotonic() when the last save ended
    saving: float = field(default=0.0, init=False)  # seconds that it took
    best: BestStudent = field(default_factory=BestStudent, init=False)
    latest: dict[str, Tensor | float] = field(default_factory=dict, init=False)  # metrics not yet logged
    start: list[str] = field(default_factory=list, init=False)  # how the student started from its teacher
    verdict: VerdictTracker = field(default_factory=VerdictTracker, init=False)  # what the user was told of health

    def __post_init__(self) -> None:
        self.step = self.good_step = -self.source.warmup
        self.saved_at = time.monotonic()

    @property
    def index(self) -> int:
        """Updates and steps done, counted from 0: the number under which metrics and pictures are logged."""
        return self.step + self.source.warmup

    def due(self, planned: bool) -> bool:
        """Whether a save is due after a step: a `planned` one, unless saving takes long, and any after a while."""
        since = time.monotonic() - self.saved_at
        soon = self.saving > SHORT and since < self.saving * (1 / SAVING - 1)
        return since > SAVED_WITHIN or (planned and not soon)

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint. Raises NotFinite for a number in it that is none, RunError as `Run.save_state`."""
        began = time.monotonic()
        state = {
            "step": self.step,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "source": self.source.state_dict(),
            "best": {"agreement": self.best.agreement, "step": self.best.step, "student": self.best.weights},
            "latest": {name: float(value) for name, value in self.latest.items()},
            "start": self.start,
            "verdict": self.verdict.state_dict(),
            "recovery": self.recovery.state_dict(),
            "origin": self.origin,
            "remarks": self.remarks,
            "random": modes.random_state(),
        }
        if self.average.values:
            state["average"] = self.average.values
        self.watch.check_state(state)
        if divided.is_on():
            own_state.require_equal({"student": self.student, **self.source.artefacts()})
            state[own_state.OTHERS] = own_state.others({"source": state["source"], "random": state["random"]})
        if self.run.save_state(state, must=must):
            self.good_step = self.step
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - began

    def resume(self, state: dict[str, Any]) -> None:
        """Put back what `save` wrote, in a new process. Raises RunError where the teacher is another."""
        line = compare(state.get("origin", {}), self.origin, "the run")  # older checkpoints do not say
        self.recovery.load_state_dict(state["recovery"])
        self.restore(state)
        self.remarks = [*state.get("remarks", []), *([line] if line else [])]  # a rollback keeps them

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `save` wrote, but for what recovery has changed since: a rollback keeps that."""
        self.step = self.good_step = state["step"]
        best = state["best"]
        self.best = BestStudent(step=best["step"], agreement=best["agreement"], weights=best["student"])
        self.latest = dict(state["latest"])
        self.start = list(state.get("start", []))  # older checkpoints know of no such start
        self.verdict.load_state_dict(state["verdict"])
        self.student.load_state_dict(state["student"])
        self.average.load(state.get("average", {}), self.student)
        self.optimizer.load_state_dict(state["optimizer"])
        own = own_state.of_this_process(state)
        self.source.load_state_dict(own["source"])
        modes.set_random_state(own["random"])  # last: nothing may draw after it
        if not own_state.is_saved_of(state):
            divided.seed(state["step"])
