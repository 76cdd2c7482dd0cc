"""The cost of passes through networks: their time, and what several processes would divide and exchange.

The networks are those that were given to `processes.share`. What is exchanged follows `processes`: the answers of a
pass and, where gradients go on to its images, these, gathered; gradients of parameters, and each BatchNorm layer's sums
in train mode, summed; what is looked at inside a pass, either.

B images of a batch, P processes, K channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from datafree.distributed import replicas
from datafree.ops import modes
from datafree.ops.predictions import all_tensors, answer_tensors


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some work costs one process alone, and what each of several would have to exchange for it."""

    seconds: float = 0.0
    passes: float = 0.0  # seconds of these that are passes through shared networks, forward and backward
    images: int = 1  # B: the batch that is divided
    gathered: float = 0.0  # bytes of whole batches that each process collects
    summed: float = 0.0  # bytes that are added up over the processes
    exchanges: float = 0.0  # how often they wait for one another

    def __add__(self, other: Cost) -> Cost:
        return _each(lambda name: getattr(self, name) + getattr(other, name), self.images)

    def times(self, factor: float) -> Cost:
        """So often."""
        return _each(lambda name: getattr(self, name) * factor, self.images)

    def shared_out(self) -> Cost:
        """The same under training.data_parallel=divided: all is about a process's own images, nothing is gathered."""
        return replace(self, passes=self.seconds, gathered=0.0)

    def of_images(self, images: int) -> Cost:
        """The same with batches of `images`: time and what is gathered grow in proportion."""
        more = images / self.images
        grown = {name: getattr(self, name) * more for name in ("seconds", "passes", "gathered")}
        return replace(self, **grown, images=images)


def _each(value: Any, images: int) -> Cost:
    return Cost(images=images, **{field.name: value(field.name) for field in fields(Cost) if field.name != "images"})


class _Watcher:
    """Notes the passes of shared networks, from hooks."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = self.gathered = self.summed = self.exchanges = 0.0
        self._device, self._clock = device, clock
        self._inside: nn.Module | None = None  # the network whose forward pass is under way
        self._began = 0.0  # when a pass, or the part of a backward pass that is under way, began
        self._ended = True  # whether the backward pass that was noted last has reached what it was for
        self._known: set[nn.Parameter] = set()  # those that say when a gradient has reached them
        self.handles: list[Any] = []

    def now(self) -> float:
        """The time, when all that was asked of the device is done."""
        modes.wait_for(self._device)
        return self._clock()

    def before(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._inside is None and replicas.is_shared(network):
            self._inside, self._began = network, self.now()

    def after(self, network: nn.Module, inputs: tuple[Tensor, ...], outputs: Any) -> None:
        if network is not self._inside:
            return
        self._inside = None
        self.seconds += self.now() - self._began
        answers, backward = answer_tensors(outputs), torch.is_grad_enabled()
        self._gather(*all_tensors(outputs))
        learnt = [parameter for parameter in network.parameters() if backward and parameter.requires_grad]
        changed = [images for images in inputs if backward and images.requires_grad]
        self._gather(*changed)
        if learnt:
            self._sum(sum(parameter.nbytes for parameter in learnt))
        both = 2 if learnt or changed else 1
        for layer in network.modules():
            if isinstance(layer, _BatchNorm) and layer.training:
                for _ in range(2 * both):  # the mean's sums and the variance's
                    self._sum(4 * layer.num_features)
        if learnt or changed:
            for answer in answers:
                self._when_reached(answer, self._begin)
            for tensor in (*changed, *(parameter for parameter in learnt if parameter not in self._known)):
                self._when_reached(tensor, self._reach)
            self._known.update(learnt)

    def look(self, part: Tensor, batch: bool) -> None:
        """Something inside a pass that is wanted of the whole batch."""
        self._gather(part) if batch else self._sum(part.nbytes)

    def _when_reached(self, tensor: Tensor, act: Callable[[Tensor], None]) -> None:
        """Have `act` done when a gradient has reached `tensor`."""
        if tensor.requires_grad:
            self.handles.append(tensor.register_hook(act))  # type: ignore[no-untyped-call]

    def _begin(self, gradient: Tensor) -> None:
        if self._ended:
            self._began, self._ended = self.now(), False

    def _reach(self, gradient: Tensor) -> None:
        now = self.now()
        self.seconds, self._began, self._ended = self.seconds + now - self._began, now, True

    def _gather(self, *tensors: Tensor) -> None:
        self.gathered += sum(tensor.nbytes for tensor in tensors)
        self.exchanges += len(tensors)

    def _sum(self, size: int) -> None:
        self.summed, self.exchanges = self.summed + size, self.exchanges + 1


@contextmanager
def watched_passes(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Iterator[_Watcher]:
    """Within it, passes of shared networks are timed and counted, at some cost to what else is timed."""
    watcher = _Watcher(device, clock)
    hooks = [register_module_forward_pre_hook(watcher.before), register_module_forward_hook(watcher.after)]
    replicas.listeners.append(watcher.look)
    try:
        yield watcher
    finally:
        replicas.listeners.remove(watcher.look)
        for handle in (*hooks, *watcher.handles):
            handle.remove()


def cost_of(
    work: Callable[[], object],
    device: torch.device,
    images: int,
    budget: float,
    least: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """What `work` costs, which is done once on `images`: the median of some runs within `budget` seconds, at least
    `least` and at most 20; and of one more that is watched, of that alone where `least` is 0. Whoever wants no first
    run in it does that before. Seconds are those of `clock`.
    """
    now = _Watcher(device, clock).now
    taken: list[float] = []
    while len(taken) < least or (least and len(taken) < 20 and sum(taken) < budget):
        began = now()
        work()
        taken.append(now() - began)
    with watched_passes(device, clock) as watcher:
        began = watcher.now()
        work()
        whole = watcher.now() - began
    seconds = sorted(taken)[(len(taken) - 1) // 2] if taken else whole
    share = min(1.0, watcher.seconds / whole) if whole > 0 else 0.0
    return Cost(
        seconds=seconds,
        passes=share * seconds,
        images=images,
        gathered=watcher.gathered,
        summed=watcher.summed,
        exchanges=watcher.exchanges,
    )
