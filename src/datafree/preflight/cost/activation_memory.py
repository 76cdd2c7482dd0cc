"""Activation memory: bytes that autograd keeps for the backward pass.

Exact, also on the CPU, where nothing else tells what a step needs before there is none left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Memory:
    """Bytes that backward passes keep: `now`, and at the `peak`. Tensors that share their values count once."""

    now: int = 0
    peak: int = 0
    held: dict[int, int] = field(default_factory=dict)  # address of the values -> how often they are kept

    def keep(self, tensor: Tensor) -> None:
        """Count a tensor."""
        values = tensor.untyped_storage()
        if self.held.setdefault(values.data_ptr(), 0) == 0:
            self.now += values.nbytes()
            self.peak = max(self.peak, self.now)
        self.held[values.data_ptr()] += 1

    def drop(self, tensor: Tensor) -> None:
        """Count it no more."""
        values = tensor.untyped_storage()
        self.held[values.data_ptr()] -= 1
        if self.held[values.data_ptr()] == 0:
            self.now -= values.nbytes()


class _Kept:
    """A tensor that a graph holds for its backward pass."""

    def __init__(self, memory: Memory, tensor: Tensor) -> None:
        self.memory, self.tensor = memory, tensor
        memory.keep(tensor)

    def __del__(self) -> None:
        self.memory.drop(self.tensor)


@contextmanager
def watched_memory(networks: list[nn.Module]) -> Iterator[Memory]:
    """Within it, what graphs keep for their backward passes is counted, the networks' own values left out."""
    memory = Memory()
    own = {values.untyped_storage().data_ptr() for n in networks for values in (*n.parameters(), *n.buffers())}

    def pack(tensor: Tensor) -> Tensor | _Kept:
        return tensor if tensor.untyped_storage().data_ptr() in own else _Kept(memory, tensor)

    def unpack(kept: Tensor | _Kept) -> Tensor:
        return kept.tensor if isinstance(kept, _Kept) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield memory
