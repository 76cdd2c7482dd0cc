"""A guard against mode collapse: detects it without real data and restarts from the last healthy state.

It looks at the batch that the source has made and had answered anyway, by the signals of `health/signals.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from datafree.errors import TrainingError
from datafree.health.signals import signals
from datafree.ops.whole_batch import whole_mean
from datafree.tasks.base import Task


class Stateful(Protocol):
    """A network or an optimiser."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


@dataclass(kw_only=True)
class Guard:
    """Notices when what a generator makes collapses, and restarts it with more caution; gives up at last.

    Collapsed: `patience` looks in a row at batches that are all alike (diversity below `min_diversity`) or of one
    class (balance below `min_balance`), or a single one that is not finite. Then `parts` go back to their last
    healthy state and `caution`, which scales the adversarial weight (or the learning rate, where there is none), is
    halved.
    """

    parts: Mapping[str, Stateful]  # generator and optimiser
    what: str  # what is scaled by `caution`, for the message
    say: Callable[[str], None]
    on_collapse: Literal["restart", "stop", "ignore"] = "restart"
    restarts: int = 3  # at most
    every: int = 10  # updates from one look to the next
    patience: int = 3  # bad looks in a row
    min_diversity: float = 0.01
    min_balance: float = 0.05
    caution: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        self._updates = 0
        self._bad = 0
        self._restarted = 0
        self._healthy: dict[str, Any] | None = None
        self.history: list[str] = []

    @property
    def healthy(self) -> bool:
        """Whether the latest look found nothing wrong."""
        return self._bad == 0

    def after(self, step: int, task: Task, images: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        """Count an update that made `images`, answered by the teacher with `outputs`; now and then, look at them.

        Returns the signals to log when it looked. Raises TrainingError when restarts are used up.
        """
        self._updates += 1
        if self.on_collapse == "ignore" or self._updates % self.every:
            return {}
        return self._look(step, task, images, outputs)

    def _look(self, step: int, task: Task, images: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        found = signals(task, images, outputs)
        both = whole_mean(torch.stack([value.double() for value in found.values()]))  # all processes decide alike
        values = dict(zip(found, both.tolist(), strict=True))
        reason = self._fault(values)
        if reason is None:
            self._bad = 0
            self._healthy = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}
            return found
        self._bad += 1
        if self._healthy is None and self._bad == 10 * self.patience:  # a generator may take a while to begin
            self._tell(f"warning: the generator has not begun to work by step {step}: {reason}")
        finite = all(map(math.isfinite, values.values()))  # what is not spoils the student at once
        if self._healthy is None or (finite and self._bad < self.patience):
            return {name: value for name, value in found.items() if math.isfinite(values[name])}
        self._bad = 0
        self._go_back()
        if self.on_collapse == "stop" or self._restarted >= self.restarts:
            times = f"{self._restarted} restart{'s' if self._restarted > 1 else ''}"
            tried = f" after {times}" if self._restarted else ""
            raise TrainingError(
                f"the generator has collapsed at step {step}{tried}: {reason}; its last healthy state is saved: "
                f"lower {self.what}, or choose another source.method"
            )
        self._restarted += 1
        self.caution /= 2
        line = (
            f"the generator had collapsed at step {step} ({reason}): put back to its last healthy state, "
            f"{self.what} now times {self.caution:g} (restart {self._restarted} of {self.restarts})"
        )
        self._tell(f"warning: {line}")
        return {name: value for name, value in found.items() if math.isfinite(values[name])}

    def _tell(self, line: str) -> None:
        self.history.append(line.removeprefix("warning: "))
        self.say(line)

    def _fault(self, found: dict[str, float]) -> str | None:
        if not all(map(math.isfinite, found.values())):
            return "its images or the teacher's answers to them are not finite"
        if found["pixel_diversity"] < self.min_diversity:
            return f"its images are all alike, their standard deviation is {found['pixel_diversity']:.4f}"
        if found["class_balance"] < self.min_balance:
            return f"the teacher sees one class only in its images, balance {found['class_balance']:.3f}"
        return None

    def _go_back(self) -> None:
        assert self._healthy is not None
        for name, part in self.parts.items():
            part.load_state_dict(copy.deepcopy(self._healthy[name]))

    def state_dict(self) -> dict[str, Any]:
        """Counters, caution and the last healthy state."""
        return {
            "updates": self._updates,
            "bad": self._bad,
            "restarted": self._restarted,
            "caution": self.caution,
            "healthy": self._healthy,
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._updates, self._bad, self._restarted = state["updates"], state["bad"], state["restarted"]
        self.caution, self._healthy = state["caution"], state["healthy"]
        self.history = list(state["history"])
