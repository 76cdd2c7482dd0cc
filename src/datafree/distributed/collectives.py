"""Collectives: tensors gathered, scattered and summed across processes, with gradients where it says so."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from datafree.distributed.lines import Lines, connected

_lines: list[Lines] = []  # to all other processes, where there are any


def backend_for(device: torch.device) -> str:
    """The group's for processes whose tensors are there; objects and checkpoints stay on the host."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


@contextmanager
def process_group(backend: str, **meeting: Any) -> Iterator[None]:
    """Within it, this process is of torch's group, met as `init_process_group` is told; then no thread of it is left.

    torch.distributed.nn, which an optimiser imports, keeps the group of that moment in the defaults of its functions.
    So it is imported before there is one. A group that is kept has threads until the interpreter ends, and one of them
    that lets go of a tensor just then aborts the process (SIGABRT, "terminate called without an active exception").

    Raises what `init_process_group` raises: RuntimeError, ValueError.
    """
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group(backend, **meeting)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def over_lines(patience: timedelta) -> Iterator[None]:
    """Within it small sums go over sockets, if all processes, each of which enters it, are of one machine."""
    found = connected(patience)
    if found is None:
        yield
        return
    _lines.append(found)
    try:
        yield
    finally:
        _lines.pop()
        found.close()


def add_up(total: Tensor) -> None:
    """Put the sum over all processes in place of a contiguous tensor; the same bits on all."""
    if _lines and _lines[-1].take(total):
        _lines[-1].add_up(total)
    else:
        dist.all_reduce(total)


def average(total: Tensor) -> None:
    """Put the mean over all processes in place of a contiguous tensor."""
    add_up(total)
    total.div_(dist.get_world_size())


def gathered(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """(sum of sizes, ...) of every process's (its size, ...)."""
    padded = part.new_zeros(max(sizes), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    whole = torch.cat([one[:size] for one, size in zip(parts, sizes, strict=True)])
    planes = part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return whole.contiguous(memory_format=torch.channels_last) if planes else whole


def mine_of(whole: Tensor, sizes: Sequence[int]) -> Tensor:
    """This process's part of what all hold."""
    start = sum(sizes[: dist.get_rank()])
    return whole[start : start + sizes[dist.get_rank()]]


def average_all(parts: Sequence[Tensor], flags: Tensor) -> None:
    """Put the means over all processes in place of tensors, and of `flags` (F,), all of one dtype; in one exchange."""
    if _lines and _lines[-1].take_all(parts):
        _lines[-1].average_all(parts, flags)
        return
    flat = torch.cat([flags, *(part.reshape(-1) for part in parts)])
    dist.all_reduce(flat)
    flat.div_(dist.get_world_size())
    means = torch.split(flat, [len(flags), *(part.numel() for part in parts)])
    for part, mean in zip((flags, *parts), means, strict=True):
        part.copy_(mean.view(part.shape))


class Part(torch.autograd.Function):
    """This process's part of a batch that all hold; the gradient is the whole batch's again."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return mine_of(whole, sizes).clone(memory_format=torch.preserve_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered(grad, ctx.sizes), None


class Collect(torch.autograd.Function):
    """All parts; every process comes to the same gradient of the whole, of which its own part is its own."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return gathered(part, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return mine_of(grad, ctx.sizes), None


class Summed(torch.autograd.Function):
    """Parameters as they are; their gradients are the sums of all parts', in one exchange."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        add_up(flat)
        parts = torch.split(flat, [grad.numel() for grad in grads])
        return tuple(part.view(grad.shape) for part, grad in zip(parts, grads, strict=True))


class Total(torch.autograd.Function):
    """The sum over all processes, each of which goes on with it in its own way: so the gradient is the sum, too."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        add_up(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        add_up(total)
        return total


class _Mean(torch.autograd.Function):
    """The mean over all processes. Of a loss that is the mean of theirs, the gradient is the mean of theirs, too."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _averaged(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _averaged(grad)


def mean_of_all(part: Tensor) -> Tensor:
    """The mean over all processes of a tensor of the same shape on each, with gradient."""
    return cast("Tensor", _Mean.apply(part))


def _averaged(part: Tensor) -> Tensor:
    whole = part.detach().clone(memory_format=torch.contiguous_format)
    average(whole)
    return whole
