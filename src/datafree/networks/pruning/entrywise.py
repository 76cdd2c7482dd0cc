"""What becomes of channels in operations that work entry by entry: sums, gates, parameters added or multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datafree.networks.pruning.channels import NONE, broadcast

if TYPE_CHECKING:
    from datafree.networks.pruning.channel_labels import ChannelLabels


def tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (tuple, list)):
            yield from tensors(arg)


def first(answer: Any) -> Tensor:
    one: Tensor = answer[0] if isinstance(answer, (tuple, list)) else answer
    return one


def entrywise(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    """Entries at equal places are one channel: of sums, of gates, and of parameters added or multiplied."""
    out = first(answer)
    result: Tensor | None = None
    for x in tensors((*args, *kwargs.values())):
        labels = carried.labels(x)
        if labels is None:
            continue
        if x.ndim > out.ndim or any(n not in (1, m) for n, m in zip(x.shape[::-1], out.shape[::-1], strict=False)):
            return None
        labels = labels.reshape((1,) * (out.ndim - x.ndim) + tuple(x.shape))
        if result is None:
            result = labels
        elif _belong(carried, result, labels, out.shape) and _belong(carried, labels, result, out.shape):
            carried.channels.unite(result, labels)
            result, labels = broadcast(result, labels)
            result = torch.where(result == NONE, labels, result)
        elif result.numel() < labels.numel():
            result = labels
    return None if result is None else result.expand(out.shape)


def _belong(carried: ChannelLabels, one: Tensor, other: Tensor, shape: torch.Size) -> bool:
    """Whether `one`, where it is broadcast, is of the channels of `other`: a gain is, a map for all is not."""
    spread = [d for d, size in enumerate(shape) if one.shape[d] == 1 and size > 1]
    vary = carried.channels.vary
    return not any(vary(other, d) for d in spread) or any(vary(one, d) and vary(other, d) for d in range(len(shape)))
