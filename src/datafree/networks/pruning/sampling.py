"""What a student's layers are refitted to, and the positions of their answers at which they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from datafree.networks.normalized import bare
from datafree.networks.pruning import least_squares
from datafree.networks.pruning.equations import bytes_of

GIB = 2**30
_LEAST = 2048  # positions of a layer, whatever the memory


@final
@dataclass(kw_only=True, frozen=True)
class RefitOptions:
    ridge: float = 1e-3  # the penalty, as a share of the mean square of a layer's inputs
    positions: int = 20_000  # sampled of a layer's answers, at least (as far as there are so many)
    per_input: int = 4  # and at least so many for each input of an output, so that the system is well determined
    sums: bool = True  # refit a layer before a residual sum to what the sum should be
    memory: float = 2.0  # GiB, about, for what is kept of the teacher's answers, and for the maps of a batch
    largest: float = 4.0  # GiB that the equations of one layer may take
    batch: int | None = None  # images at a time; unset: as many as `memory` allows
    seed: int = 0


@dataclass(kw_only=True)
class Target:
    """A layer of the student and what it is refitted to."""

    layer: str
    norm: str | None
    theirs: str  # the teacher's layer
    their_norm: str | None
    rows: Tensor  # (O,) the teacher's outputs for each of the student's; below 0: none
    sum_of: str  # the teacher's layer whose sum with another map this layer's stands for
    sum_norm: str | None


class Sample:
    """Positions of each layer's answers, and what is to be answered there."""

    def __init__(self, student: nn.Module, targets: list[Target], options: RefitOptions, images: int) -> None:
        modules = dict(bare(student).named_modules())
        self.options, self.images = options, images
        kept = 2 * 4 * sum(len(target.rows) for target in targets)  # bytes for a position of every layer
        self.most = max(_LEAST, int(options.memory * GIB / max(kept, 1)))
        self.shapes = {one.layer: least_squares.as_matrix(modules[one.layer]).shape for one in targets}  # (G, K, O)
        self.index = {target.layer: index for index, target in enumerate(targets)}
        self.sizes: dict[tuple[str, int], tuple[int, ...]] = {}  # (layer, batch) -> that of the answer
        self.positions: dict[tuple[str, int], Tensor] = {}
        self.values: dict[tuple[str, int], Tensor] = {}  # (P, O)
        self.sums: dict[tuple[str, int], Tensor] = {}  # of the sum that the answer goes into, where it does

    def choose(self, layer: str, batch: int, images: int, answer: Tensor, linear: bool) -> Tensor:
        """Positions of an answer, which a `linear` layer may give as (B, H, W, O)."""
        rows = linear or answer.ndim != 4
        size = (answer.numel() // answer.shape[-1],) if rows else (len(answer), *answer.shape[2:])
        total = math.prod(size)
        wanted = math.ceil(self._wanted(layer) * images / self.images)
        seed = (self.options.seed * 1009 + self.index[layer]) * 100_003 + batch
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(total, (wanted,), generator=generator) if total > wanted else torch.arange(total)
        self.sizes[layer, batch], self.positions[layer, batch] = size, chosen.to(answer.device)
        return self.positions[layer, batch]

    def grows(self, layer: str, share: float) -> float:
        """How many times as many positions would be sampled if the images here were but this share of all.

        Early layers, of large maps, have all that are wanted in a few images already.
        """
        return self.count(layer, share) / max(1, self.count(layer, 1.0))

    def count(self, layer: str, share: float) -> int:
        """Positions that are sampled where the images here are such a share of all."""
        there = sum(math.prod(size) for (name, _), size in self.sizes.items() if name == layer)
        return min(self._wanted(layer), round(there / share))

    def equations_bytes(self, layer: str, share: float) -> int:
        return bytes_of(self.count(layer, share), *self.shapes[layer][:2])

    def _wanted(self, layer: str) -> int:
        return min(self.most, max(self.options.positions, self.options.per_input * self.shapes[layer][1]))
