"""The last layers of a graph of steps, which a detector keeps in float with all that is computed from them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Step(Generic[Value]):
    """A step of a graph, by the names of the values that it takes and makes; `layer`: it has weights."""

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    layer: bool


def last_steps(steps: Sequence[Step[Value]]) -> list[int]:
    """Indices of the steps that no layer with weights is computed from, or only through others: the last ones.

    `steps` are in an order in which each can be computed.
    """
    feeds: set[Value] = set()  # values that a layer with weights is computed from
    ends = []
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        last = feeds.isdisjoint(step.outputs)
        if last:
            ends.append(index)
        if not last or step.layer:
            feeds.update(step.inputs)
    return ends
