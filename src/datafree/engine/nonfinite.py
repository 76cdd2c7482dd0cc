"""Detection of NaN and infinity, within a training step and without making an accelerator wait.

Each thing that is checked becomes one scalar, a sum or a norm: it is finite if all of it is (and no larger than 1e19,
which is as bad). On the CPU the scalars are read at once. On an accelerator they are sent to the host behind the step's
own work, and read when they have arrived, which is in one of the next steps; before anything is written they are waited
for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datafree.distributed import divided, replicas
from datafree.ops import modes
from datafree.ops.predictions import answer_tensors

SHOWN = "the images that the teacher is shown"
ANSWERED = "the teacher's answers"


class NotFinite(Exception):
    """`what` was not finite at `step`; `evidence` is what the step began with and worked on."""

    def __init__(self, what: str, step: int, evidence: dict[str, Any]) -> None:
        super().__init__(f"not finite at step {step}: {what}")
        self.what, self.step, self.evidence = what, step, evidence


@dataclass(kw_only=True)
class _Look:
    """Scalars on their way to the host."""

    names: list[str]
    totals: Tensor
    arrived: Any  # a torch.Event; None on the CPU
    step: int
    evidence: dict[str, Any]


class Watch:
    """Told of everything that a step makes, in the order of its making; says so when something is not finite."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._step = 0
        self._evidence: dict[str, Any] = {}
        self._names: list[str] = []
        self._totals: list[Tensor] = []
        self._sent: deque[_Look] = deque()

    def begin(self, step: int) -> None:
        """A step begins: its random states are kept until it is known to be good."""
        self._step, self._evidence = step, {"step": step, "random": modes.random_state()}

    def keep(self, **inputs: Any) -> None:
        """Inputs of the step, to be looked into if it goes wrong."""
        self._evidence |= inputs

    def see(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Note tensors; `what` names them in a message."""
        floats = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        if floats:
            self._names.append(what)
            self._totals.append(_total(floats))

    @contextmanager
    def answers_of(self, teacher: nn.Module) -> Iterator[None]:
        """Within it, every pass of the teacher is seen: what it is shown, then what it answers."""

        def seen(module: nn.Module, shown: tuple[Tensor, ...], answer: Any) -> None:
            self.see(SHOWN, shown)
            self.see(ANSWERED, answer_tensors(answer))

        handle = teacher.register_forward_hook(seen)
        try:
            yield
        finally:
            handle.remove()

    def look(self, *, wait: bool = False) -> None:
        """Read what is known of all that was seen; `wait`: of all of it. Raises NotFinite for the first that is bad."""
        wait = wait or replicas.count() > 1  # all must see it at the same step
        if self._totals:
            totals, arrived = torch.stack([total.to(self._device, non_blocking=True) for total in self._totals]), None
            if modes.runs_ahead(self._device):
                there = torch.empty(totals.shape, dtype=totals.dtype, pin_memory=True)
                totals = there.copy_(totals, non_blocking=True)
                arrived = torch.Event(self._device)
                arrived.record()
            self._sent.append(
                _Look(names=self._names, totals=totals, arrived=arrived, step=self._step, evidence=self._evidence)
            )
            self._names, self._totals = [], []
        found: NotFinite | None = None
        while not found and self._sent and (wait or self._sent[0].arrived is None or self._sent[0].arrived.query()):
            look = self._sent.popleft()
            if wait and look.arrived is not None:
                look.arrived.synchronize()
            good = torch.isfinite(look.totals).tolist()
            if not all(good):
                found = NotFinite(look.names[good.index(False)], look.step, look.evidence)
        self._raise(found)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Look at every number of a state that is about to be written. Raises NotFinite."""
        bad = next((where for where, value in _numbers(state) if not _is_finite(value)), None)
        self._raise(None if bad is None else NotFinite(f"the state's {bad}", self._step, self._evidence))

    def _raise(self, found: NotFinite | None) -> None:
        """Raise what was found; where each process looks at its own part of a batch, on all if on one."""
        if divided.is_on() and (what := replicas.all_agree(None if found is None else found.what)):
            found = found or NotFinite(what, self._step, self._evidence)
        if found is not None:
            self.forget()
            raise found

    def forget(self) -> None:
        """Drop what was seen: the run goes back."""
        self._names, self._totals = [], []
        self._sent.clear()


def _is_finite(value: Tensor | float) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return math.isfinite(float(value.sum())) or bool(torch.isfinite(value).all())  # a sum is faster, but can overflow


def _total(floats: list[Tensor]) -> Tensor:
    """A scalar that is finite if they all are: on an accelerator by few kernels, on a CPU by the least work."""
    if modes.runs_ahead(floats[0].device):
        return nn.utils.get_total_norm(floats).float()
    return torch.stack([tensor.sum(dtype=torch.float32) for tensor in floats]).sum()


def _numbers(value: Any, where: str = "") -> Iterable[tuple[str, Tensor | float]]:
    """Every floating-point tensor and number of nested plain values, with its place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{where}/{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{where}/{index}")
    elif isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()):
        yield where, value
