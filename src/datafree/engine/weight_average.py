"""The exponential moving average of a student's weights (EMA), which is kept in the student's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from datafree.networks import moving_average


@dataclass(kw_only=True)
class WeightAverage:
    """Averages of weights and of BatchNorm's running statistics; whole numbers, such as its counts, are the last ones.

    The momentum of step t is min(`momentum`, (1 + t) / (10 + t)), as that of TensorFlow's ExponentialMovingAverage with
    `num_updates`: what a short run began with is soon forgotten. Momentum 0 is no average.
    """

    momentum: float = 0.0
    values: dict[str, Tensor] = field(default_factory=dict)  # empty until the first step is done

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        if not self.momentum:
            return
        weights = _tensors(student)
        if not self.values:
            self.values = {name: value.clone() for name, value in weights.items()}
            return
        moving_average.take_in(self.values, weights, min(self.momentum, (1 + step) / (10 + step)))

    @contextmanager
    def shown_by(self, student: nn.Module, wanted: bool = True) -> Iterator[None]:
        """Within it the student holds the average, where that is `wanted`; afterwards its own weights, to the bit."""
        swaps = wanted and bool(self.values)
        own = {name: value.clone() for name, value in _tensors(student).items()} if swaps else {}
        if swaps:
            self.put_into(student)
        try:
            yield
        finally:
            _fill(student, own)

    def put_into(self, student: nn.Module) -> None:
        """Leave the average in the student, if there is one."""
        _fill(student, self.values)

    def load(self, values: dict[str, Tensor], student: nn.Module) -> None:
        """Put back the values of a checkpoint, on the student's device."""
        where = _tensors(student)
        self.values = {name: value.to(where[name].device, copy=True) for name, value in values.items()}


def _tensors(student: nn.Module) -> dict[str, Tensor]:
    """Its state without what else its modules save (extra state), which has no average."""
    return {name: value for name, value in student.state_dict().items() if isinstance(value, Tensor)}


@torch.no_grad()
def _fill(student: nn.Module, values: dict[str, Tensor]) -> None:
    weights = _tensors(student)
    for name, value in values.items():
        weights[name].copy_(value)
