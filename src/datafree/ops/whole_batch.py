"""Means and norms over the whole batch, of which this process may hold a part only.

A process alone holds all of it, and everything here costs one comparison. While several processes share out each batch,
all of them equally large parts, `distributed.divided` puts its exchange here. Then a process's loss l_r is of its part,
the batch's is L = mean over r of l_r, and a local gradient of whatever stays on the process is P times that of L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Exchange(NamedTuple):
    """How processes come to a mean of all."""

    parts: Callable[[], int]  # P
    mean: Callable[[Tensor], Tensor]  # over the processes, of a tensor of the same shape; with gradient


exchanges: list[Exchange] = []  # the last one counts


def parts() -> int:
    """P, of how many equal parts the batch consists."""
    return exchanges[-1].parts() if exchanges else 1


def part_of(capacity: int) -> int:
    """The places of a bank that this process keeps, of so many in all: the oldest image is as old as it would be."""
    return -(-capacity // parts())


def whole_mean(mean: Tensor) -> Tensor:
    """The whole batch's mean, from that of this process's part; the same on all processes."""
    return exchanges[-1].mean(mean) if parts() > 1 else mean


def whole_norm(norm: Tensor) -> Tensor:
    """The 2-norm of the whole batch's values, from those of this process's part."""
    return (parts() * whole_mean(norm.square())).sqrt() if parts() > 1 else norm


@torch.no_grad()
def scale_own_gradients(tensors: Iterable[Tensor]) -> None:
    """Bring gradients of what this process alone holds, pixels or latents, to those of the whole batch's loss."""
    for tensor in tensors:
        if parts() > 1 and tensor.grad is not None:
            tensor.grad.div_(parts())
