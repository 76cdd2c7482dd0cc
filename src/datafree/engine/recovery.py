"""Recovery from NaN, infinity and memory that runs out: what a run changes when it rolls back to its last checkpoint.

It continues from there with lower learning rates, or with batches split into micro-batches. So no step is half-done,
and nothing bad is ever saved. What was changed is part of the training state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from datafree.distributed import replicas
from datafree.engine import out_of_memory
from datafree.engine.nonfinite import ANSWERED, NotFinite
from datafree.engine.out_of_memory import OutOfMemory
from datafree.errors import TrainingError
from datafree.recipe.training import Training
from datafree.sources.base import ImageSource

SOURCE_UPDATE = "the source's update"
STUDENT_STEP = "the student's step"


@dataclass(kw_only=True)
class Recovery:
    """How often a run was rolled back, and what it changed."""

    rollbacks: int = 0  # because of numbers that were not finite
    pace: float = 1.0  # times every learning rate; halved each time
    parts: int = 1  # each batch is learnt from in so many, one after another
    history: list[str] = field(default_factory=list)  # a line for each time

    def with_numbers(self, fault: NotFinite, training: Training, good: int, kept: str) -> str:
        """The line to say on going back to step `good`. Raises TrainingError when that was done often enough.

        `kept`: where the faulty step can be looked into.
        """
        if self.rollbacks >= training.max_rollbacks:
            times = f"{self.rollbacks} rollback{'s' if self.rollbacks > 1 else ''}"
            tried = f" after {times}, each at half the learning rates" if self.rollbacks else ""
            raise TrainingError(f"{fault}{tried}; the checkpoint of step {good} is kept{kept}: {way_out(fault)}")
        self.rollbacks += 1
        self.pace /= 2
        return self._note(
            f"{fault}; rolled back to step {good}, learning rates times {self.pace:g} from here "
            f"(rollback {self.rollbacks} of {training.max_rollbacks}){kept}"
        )

    def with_memory(
        self,
        fault: OutOfMemory,
        training: Training,
        good: int,
        source: ImageSource,
        student: nn.Module,
        step: int,
        least: Callable[[], int],
    ) -> str:
        """The line to say on going back to step `good`. Raises TrainingError where nothing can be split.

        Nothing can with several processes: one alone would go back while the others wait for its part of a pass.
        What the student learns from is split: its loss is a mean over images. What a source makes depends on the whole
        batch (diversity, BatchNorm statistics), so there the run ends with the size that fits. `least`: images that the
        student has to see at once.
        """
        where = str(fault)
        if replicas.count() > 1:
            raise TrainingError(
                f"out of memory in {where} at step {step}, on process {replicas.rank()} of {replicas.count()}; the "
                f"checkpoint of step {good} is kept: lower training.batch_size or source.batch_size with another "
                "--out, or start more processes"
            )
        if where == SOURCE_UPDATE:
            raise too_large(source, student, step)
        fewest = least() if where == STUDENT_STEP else 1
        most = training.batch_size // fewest
        if where != STUDENT_STEP or self.parts >= most:
            size = "one image" if fewest == 1 else f"{fewest} images, the fewest that it can learn from at once"
            few = f", with micro-batches of {size}" if where == STUDENT_STEP and self.parts > 1 else ""
            raise TrainingError(
                f"out of memory in {where} at step {step}{few}; the checkpoint of step {good} is kept: free some "
                f"memory, or lower training.batch_size (now {training.batch_size}) with another --out"
            )
        self.parts = min(2 * self.parts, most)
        return self._note(
            f"out of memory in {where} at step {step}: rolled back to step {good}; each batch of {training.batch_size} "
            f"is split into {self.parts} micro-batches from here, with gradient accumulation"
        )

    def _note(self, line: str) -> str:
        self.history.append(line)
        return f"warning: {line}"

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.rollbacks, self.pace, self.parts = state["rollbacks"], state["pace"], state["parts"]
        self.history = list(state["history"])


def way_out(fault: NotFinite, rate: str = "training.lr") -> str:
    """What to do about numbers that are not finite again and again."""
    if fault.what == ANSWERED:  # what it was shown was seen before
        return "the images are finite, so check the teacher's weights and code, or set training.precision=fp32"
    return f"lower {rate} or the source's weights"


def too_large(source: ImageSource, student: nn.Module, step: int) -> TrainingError:
    """What to raise when memory runs out in a source's update, with a batch size that fits; the source is spent."""
    had = out_of_memory.update_batches(source)
    fits = out_of_memory.fitting(source, student, step) if had else None
    advice = f"with batch_size={fits} it fits (tried)" if fits else "no smaller batch_size was found to fit"
    return TrainingError(
        f"out of memory in {SOURCE_UPDATE} at step {step}{f', batch_size={max(had)}' if had else ''}: {advice}; its "
        f"images depend on their whole batch, so it is not split: set source.batch_size, and another --out"
    )
