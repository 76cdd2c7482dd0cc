"""Data parallelism: each process runs the ordinary program on its own part of every batch, and gradients are averaged.

The parts are equally large, and every process has as many images of all kinds as any other, so that what depends on
their number happens on all alike. Networks that learn begin with the same weights and take the same steps: gradients of
their parameters are averaged in one exchange a step (`average_gradients`), BatchNorm in train mode and losses of the
whole batch exchange means (`ops.whole_batch`). Images, answers and banks stay with the process that made them.

P processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datafree.distributed import collectives, replicas
from datafree.errors import DatafreeError
from datafree.ops import modes, whole_batch
from datafree.ops.predictions import raw_tensors
from datafree.text import show


@contextmanager
def sharing(on: bool) -> Iterator[None]:
    """Within it, batches are shared out among the processes, or (not `on`) every process holds all of them."""
    parts = replicas.count if on else lambda: 1
    whole_batch.exchanges.append(whole_batch.Exchange(parts, collectives.mean_of_all))
    try:
        yield
    finally:
        whole_batch.exchanges.pop()


def is_on() -> bool:
    """Whether this process has only a part of each batch."""
    return whole_batch.parts() > 1


def share_of(count: int, what: str) -> int:
    """This process's part of `count` images; `what` names the option. Raises DatafreeError unless all get as many."""
    parts = whole_batch.parts()
    if count % parts:
        near = sorted({max(parts, count // parts * parts), -(-count // parts) * parts})
        raise DatafreeError(
            f"{what} is {count}, which {parts} processes cannot share out evenly: set it to "
            f"{' or '.join(map(str, near))}, start another number of processes, or set training.data_parallel=exact"
        )
    return count // parts


def turn() -> tuple[int, int]:
    """(rank, P): this process reads the items of a sequence whose number leaves `rank` when divided by P."""
    return (replicas.rank(), whole_batch.parts()) if is_on() else (0, 1)


def seed(number: int) -> None:
    """Give every process random numbers of its own; the first one's stay as they are."""
    if is_on() and replicas.rank():
        modes.seed_everything(int.from_bytes(hashlib.blake2b(f"{number} {replicas.rank()}".encode()).digest()[:4]))


# --- networks that learn ---


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Put the mean over all processes in place of each gradient, in one exchange; nothing where each has it all.

    A parameter without a gradient on any process keeps none, so that no optimiser touches it.
    """
    if not is_on():
        return
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    for kind in dict.fromkeys(parameter.dtype for parameter in learning):
        held = [parameter for parameter in learning if parameter.dtype == kind]
        there = [parameter.grad is not None for parameter in held]
        known = torch.tensor(there, dtype=kind).to(held[0].device, non_blocking=True)
        grads = [_gradient(parameter) for parameter in held]
        collectives.average_all(grads, known)
        if not all(there):  # read only if in doubt: it waits
            for parameter, grad, somewhere in zip(held, grads, known.tolist(), strict=True):
                parameter.grad = grad if somewhere else None


def _gradient(parameter: Tensor) -> Tensor:
    """A parameter's gradient, of zeros if there is none, in the memory format of the parameter: the same on all."""
    if parameter.grad is None or parameter.grad.stride() != parameter.stride():
        laid_out = torch.zeros_like(parameter)
        parameter.grad = laid_out if parameter.grad is None else laid_out.copy_(parameter.grad)
    return parameter.grad


class _Anchored(torch.autograd.Function):
    """A loss as it is; every one of `outputs` has a gradient, perhaps of zeros."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *outputs: Tensor) -> Tensor:
        ctx.save_for_backward(*outputs)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(output) for output in ctx.saved_tensors)


def anchored(loss: Tensor, outputs: Any) -> Tensor:
    """The loss, sent back through every part of the network that answered `outputs`.

    A detector's loss leaves out what no box asks for, on one process and not on another; but BatchNorm layers exchange
    on the way back, so that all processes must go the same way.
    """
    if not is_on() or isinstance(outputs, Tensor):  # of one tensor all of the network is asked
        return loss
    return cast("Tensor", _Anchored.apply(loss, *raw_tensors(outputs)))


@torch.no_grad()
def take_the_first(network: nn.Module) -> None:
    """Give this network the values of the first process: after something was drawn, or learnt from own images."""
    if not is_on():
        return
    values = [*network.parameters(), *network.buffers()]
    for kind in dict.fromkeys(value.dtype for value in values):
        held = [value for value in values if value.dtype == kind]
        flat = torch.cat([value.reshape(-1) for value in held])
        dist.broadcast(flat, src=0)
        for value, first in zip(held, torch.split(flat, [value.numel() for value in held]), strict=True):
            value.copy_(first.view(value.shape))


# --- figures and checks ---


def mean_values(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over the processes of each figure, of those that have it, in the first one's order."""
    if not is_on():
        return dict(values)
    every = gathered_objects(dict(values))
    names = dict.fromkeys(name for one in every for name in one)
    return {name: sum(known := [one[name] for one in every if name in one]) / len(known) for name in names}


def gathered_objects(mine: Any) -> list[Any]:
    """Every process's plain values, in the order of their numbers."""
    every: list[Any] = [None] * replicas.count()
    dist.all_gather_object(every, mine)
    return every


def require_alike(facts: Mapping[str, str]) -> None:
    """Raise DatafreeError, on all processes, for the first of the facts that is another on one than on the first."""
    if replicas.count() == 1:
        return
    every = gathered_objects(dict(facts))
    for number, theirs in enumerate(every):
        for name in {**every[0], **theirs}:
            first, other = every[0].get(name, "none"), theirs.get(name, "none")
            if first != other:
                raise DatafreeError(
                    f"process {number} of {len(every)} has another {name} than process 0 ({show(other)}, "
                    f"{show(first)}): start all of them with the same recipe, files, versions and threads"
                )
