"""Hints for a student that started from its teacher: its maps beside the channels of the teacher that it stands for.

Romero et al., "FitNets: hints for thin deep nets", arXiv 1412.6550, eq. 3. There a regressor brings the student's
map to the teacher's, and one layer is compared, before the distillation. A student that started from its teacher needs
no regressor, as each of its channels stands for a known one of the teacher's; so all layers behind which there are
such channels are compared, all the time, each over the variance of the teacher's map.

B images, O channels of the student's map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.networks import features
from datafree.networks.normalized import bare
from datafree.networks.pruning.refit import Target
from datafree.ops import modes

_LEAST = 1e-12  # variance of a map; one that does not change hints at nothing


@dataclass(frozen=True, kw_only=True)
class Hint:
    """A layer of the student, and the one of its teacher whose answers it is compared with."""

    ours: str
    theirs: str
    known: Tensor | None  # (K,) those of the student's channels that stand for one of the teacher's; None: all do
    channels: Tensor  # (K,) the teacher's
    dim: int  # of the channels
    variance: float  # of the teacher's channels over images and places, their mean

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The mean squared difference of two maps at the channels compared, over the teacher's variance."""
        known = ours if self.known is None else ours.index_select(self.dim, self.known)
        return F.mse_loss(known.float(), theirs.index_select(self.dim, self.channels).float()) / self.variance

    def on(self, device: torch.device) -> Hint:
        """The same for maps on a device."""
        known = None if self.known is None else self.known.to(device)
        return replace(self, known=known, channels=self.channels.to(device))

    def state(self) -> dict[str, Any]:
        """What it is made of, as plain data for a checkpoint."""
        return dict(vars(self.on(torch.device("cpu"))))


def hint_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], hints: Sequence[Hint]) -> Tensor:
    """The mean over hints, as `watched` maps of both by their layers' names; of the same B images."""
    return torch.stack([hint.distance(student[hint.ours], teacher[hint.theirs]) for hint in hints]).mean()


@torch.no_grad()
def hints_of(
    teacher: nn.Module, student: nn.Module, targets: Iterable[Target], ends: Mapping[str, str], images: Tensor
) -> list[Hint]:
    """What the layers of `targets` are compared with: the answer behind their BatchNorm where there is one.

    `ends`: the student's block -> the last of the teacher's blocks that it stands for, where these are several. The
    last layer of such a block does the work of several, so that what the blocks answer is compared in its place. Left
    out are layers whose answers are not seen or have other sizes, and maps of the teacher that do not change over
    `images` (B, 3, H, W).
    """
    compared = _compared(targets, {block: end for block, end in ends.items() if block != end})
    found = []
    with (
        modes.frozen(teacher, student),
        features.watched(bare(student), {ours for ours, _ in compared}, strict=False) as learnt,
        features.watched(bare(teacher), {theirs for _, theirs in compared}, strict=False) as taught,
    ):
        student(images)
        teacher(images)
    for (ours, theirs), target in compared.items():
        if ours not in learnt or theirs not in taught:
            continue
        rows, seen = target.rows.to(images.device), taught[theirs]
        dim = 1 if isinstance(bare(student).get_submodule(target.layer), nn.Conv2d) else -1
        known = torch.nonzero(rows >= 0).flatten()
        if not len(known) or _without(learnt[ours], dim) != _without(seen, dim):
            continue
        moved = seen.float().movedim(dim, 0).flatten(1)[rows[known]]
        variance = float(moved.var(1, correction=0).mean())
        if variance > _LEAST:
            some = known if len(known) < len(rows) else None
            found.append(Hint(ours=ours, theirs=theirs, known=some, channels=rows[known], dim=dim, variance=variance))
    return found


def _compared(targets: Iterable[Target], ends: Mapping[str, str]) -> dict[tuple[str, str], Target]:
    """The student's module and the teacher's that are compared -> the target whose channels both have."""
    found: dict[tuple[str, str], Target] = {}
    last: dict[str, Target] = {}
    for target in targets:
        if block := next(
            (block for block in ends if target.sum_of != target.theirs and _is_in(target.layer, block)), None
        ):
            if block in last:
                found[_own(last[block])] = last[block]
            last[block] = target
        else:
            found[_own(target)] = target
    return found | {(block, ends[block]): target for block, target in last.items()}


def _own(target: Target) -> tuple[str, str]:
    return target.norm or target.layer, target.their_norm or target.theirs


def _is_in(layer: str, block: str) -> bool:
    return layer == block or layer.startswith(f"{block}.")


def _without(value: Tensor, dim: int) -> torch.Size:
    """The shape but for one dimension."""
    return value.movedim(dim, 0).shape[1:]
