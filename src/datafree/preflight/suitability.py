"""Suitability of methods for a teacher: by its BatchNorm layers, its task and what each method declares."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from datafree.networks.batchnorm import batchnorm_layers, is_as_new
from datafree.networks.patches import attention_layers
from datafree.recipe.recipe import TASK
from datafree.sources import SOURCES
from datafree.sources.base import ImageSource
from datafree.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """How many layers there are of each kind; one folded into its convolution is gone and cannot be counted."""

    live: int  # with running statistics
    frozen: int  # with statistics, and scales that no training changes, as in torchvision's FrozenBatchNorm2d
    without_statistics: int  # that use each batch's own
    as_new: int  # of the first two: those whose statistics no image has moved yet
    attention: int  # attention layers, of which some methods take a prior where there is no BatchNorm
    note: str


@dataclass(frozen=True, kw_only=True)
class Applies:
    """Whether a method can use this teacher."""

    applies: bool
    note: str  # why not, what will be off, what it needs


def count_batchnorm(network: nn.Module) -> BatchNorm:
    """The BatchNorm layers of a bare network."""
    kept: list[Any] = list(batchnorm_layers(network).values())
    ordinary = nn.modules.batchnorm._BatchNorm
    frozen = [norm for norm in kept if not isinstance(norm, ordinary) or _is_fixed(norm)]
    batch = [m for m in network.modules() if isinstance(m, ordinary) and m.running_mean is None]
    new = [norm for norm in kept if is_as_new(norm)]
    return BatchNorm(
        live=len(kept) - len(frozen),
        frozen=len(frozen),
        without_statistics=len(batch),
        as_new=len(new),
        attention=len(attention_layers(network)),
        note="" if kept or batch else _instead(network),
    )


def _is_fixed(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return norm.affine and not norm.weight.requires_grad


def _instead(network: nn.Module) -> str:
    """What a network without BatchNorm has."""
    others = Counter(kind for m in network.modules() if "Norm" in (kind := type(m).__name__))
    if others:
        return f"none; it has {', '.join(f'{count} {kind}' for kind, count in others.most_common(3))}"
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if convs and all(conv.bias is not None for conv in convs):
        return "none: it never had any, or they are folded into its convolutions, all of which have a bias"
    return "none"


def _updates(source: type[ImageSource]) -> bool:
    """Whether a method, by its own defaults, does anything but hand images on."""
    return any(field.default for field in dataclasses.fields(source) if field.name in ("warmup", "update_every"))


def applies(
    name: str, task: Task, norms: BatchNorm, trained: bool, problem: str | None, gradients: bool = True
) -> Applies:
    """Whether the method `name` can use a teacher; `trained`: it has weights; `problem`: why it does not fit `task`.

    `gradients`: whether they come back through it to its images.
    """
    source = SOURCES[name]
    if problem is not None:
        return Applies(applies=False, note="not before the answers fit the task")
    if not issubclass(type(task), source.serves):
        return Applies(applies=False, note=f"makes images for {TASK.name_of(source.serves)} only")
    statistics = norms.live + norms.frozen
    attends = source.or_attention and norms.attention > 0
    if source.needs_batchnorm and not (statistics or attends):
        return Applies(applies=False, note="is built on BatchNorm statistics, and there are none")
    if source.needs_gradients and _updates(source) and not gradients:
        return Applies(applies=False, note="learns through the teacher, and no gradient comes back through this one")
    notes = [
        f"needs source.{field.name}"
        for field in dataclasses.fields(source)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if attends and not statistics:
        notes.append("by the entropy of the patches in its attention layers, in place of BatchNorm statistics")
    elif source.uses_batchnorm and not statistics:
        notes.append("source.bn_weight is off without BatchNorm statistics")
    elif source.uses_batchnorm and trained and norms.as_new == statistics:
        notes.append("the BatchNorm statistics are as new and say nothing")
    return Applies(applies=True, note="; ".join(notes))
