"""A student that starts from its teacher: `student.init: teacher`.

Layers are matched by name, channels chosen group by group, copied, and what is left is refitted to the teacher's
feature maps on made images. A student of the teacher's own shape starts as the teacher.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.normalized import bare, in_float32
from datafree.networks.pruning.channel_labels import Followed
from datafree.networks.pruning.copying import Copied, copy, cut_of, kept_rows
from datafree.networks.pruning.correspondence import WAY_OUT, Correspondence, Drop, block_effects, correspond
from datafree.networks.pruning.fixed_time import FixedTime
from datafree.networks.pruning.follow import follow
from datafree.networks.pruning.groups import Kept, keep
from datafree.networks.pruning.importance import Importance, scores
from datafree.networks.pruning.refit import Refitted, refit
from datafree.networks.pruning.sampling import RefitOptions, Target
from datafree.ops import modes
from datafree.tasks.base import Task

_LOOK = 64  # images for scores and effects
_HELD = 8  # one image in so many is held out to see how well the student agrees
_SHOWN = 3  # names in a line of the log


@final
@dataclass(kw_only=True, frozen=True)
class StartOptions:
    importance: Importance = "norm"  # norm of filters, times BatchNorm's gain, or Taylor's on images
    drop: Drop = "effect"  # which blocks a shallower student does without: those of least effect, or evenly spread
    refit: RefitOptions | None = field(default_factory=RefitOptions)  # None: copy only


@dataclass(kw_only=True)
class Started:
    """How a student started. Fractions in [0, 1]."""

    correspondence: Correspondence
    kept: Kept
    copied: Copied
    refitted: Refitted
    images: int  # that it was refitted on
    agreement: dict[str, float]  # with the teacher on held images: as "made", "copied" and "refitted"
    refit_undone: bool = False  # it agreed less than the copy

    @property
    def whole(self) -> bool:
        """Whether the student is a copy of its teacher."""
        return self.copied.whole and not self.correspondence.dropped

    def lines(self) -> list[str]:
        """What the log says."""
        copied, total = self.copied, self.copied.parameters + self.copied.new
        if self.whole:
            return [f"student: starts as its teacher, whose shape it has: all {total:,} parameters copied"]
        first = f"student: starts from its teacher: {copied.parameters:,} of its {total:,} parameters copied"
        first += f", {copied.new:,} new" if copied.new else ""
        first += f"; channels of {self.kept.groups} groups"
        first += f", {self.kept.loose} of them not in their own group" if self.kept.loose else ""
        said = [first]
        if dropped := self.correspondence.dropped:
            said.append(f"student: {len(dropped)} of its teacher's blocks dropped: {_some(dropped)}")
        errors = self.refitted.errors
        if errors:
            middle = statistics.median(errors.values())
            said.append(
                f"student: {len(errors)} layers refitted by least squares on {self.images} images; of the teacher's "
                f"maps' variance {middle:.0%} is left unexplained (median of layers)"
            )
        for reason in sorted(set(self.refitted.skipped.values())):
            names = [name for name, why in self.refitted.skipped.items() if why == reason]
            said.append(f"student: not refitted: {_some(names)} ({reason})")
        if self.agreement:
            steps = ", ".join(f"{share:.1%} {when}" for when, share in self.agreement.items())
            said.append(f"student: agrees with its teacher on held images: {steps}")
        if self.refit_undone:
            said.append("student: the refit agreed less than the copy, and was undone; give it more images")
        return said


def start_from_teacher(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    options: StartOptions | None = None,
    task: Task | None = None,
    fixed: FixedTime | None = None,
) -> Started:
    """Give `student` the weights of `teacher`, cut and refitted on `images` (B, 3, H, W) in [0, 1].

    Both take images in [0, 1]. With `task`, one image in eight is held out, and a refit that agrees less with the
    teacher there than the copy is undone. Raises NetworkError, naming the first layer, where they do not correspond.
    """
    with in_float32(teacher, student):  # autocast hides which parameters are used, and blurs what is solved for
        return _start(teacher, student, images, options or StartOptions(), task, fixed or FixedTime())


def _start(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    options: StartOptions,
    task: Task | None,
    fixed: FixedTime,
) -> Started:
    if any(isinstance(module, torch.jit.ScriptModule) for module in bare(teacher).children()):
        raise NetworkError(f"the teacher is a TorchScript program, whose layers cannot be watched: {WAY_OUT}")
    device = next(bare(student).parameters()).device
    look = images[:_LOOK].to(device)
    with fixed.counted():
        found = correspond(teacher, student)
    if found.dropped and options.drop == "effect":  # else there is nothing to choose, and a pass to be spared
        found = correspond(teacher, student, block_effects(teacher, look))
    with fixed.counted():
        names = found.tensors(bare(student))
        followed = (follow(teacher, look[:1]), follow(student, look[:1]))
    important = scores(options.importance, teacher, followed[0], look)
    with fixed.counted():
        kept = keep(*followed, names, important)
    used, held = (images, images[:0]) if task is None or len(images) < _HELD else _split(images)
    agreement: dict[str, float] = {}

    def measure(when: str) -> None:
        if task is not None and len(held):
            share = agreed(teacher, student, held, task, device)
            agreement.update({} if share is None else {when: share})

    measure("made")
    started = Started(
        correspondence=found,
        kept=kept,
        copied=copy(teacher, student, followed, names, kept),
        refitted=Refitted(),
        images=0,
        agreement=agreement,
    )
    measure("copied")
    if started.whole or options.refit is None:
        return started
    before = modes.copied_state(bare(student))
    with fixed.counted():
        targets = refit_targets(teacher, student, followed, found, kept)
    started.refitted, started.images = refit(teacher, student, targets, used, options.refit, fixed), len(used)
    measure("refitted")
    if agreement.get("refitted", 1.0) < agreement.get("copied", 0.0):
        bare(student).load_state_dict(before)
        started.refit_undone = True
    return started


def _split(images: Tensor) -> tuple[Tensor, Tensor]:
    held = torch.arange(len(images)) % _HELD == _HELD - 1
    return images[~held], images[held]


@torch.no_grad()
def agreed(teacher: nn.Module, student: nn.Module, images: Tensor, task: Task, device: torch.device) -> float | None:
    """Fraction of rows on which both name the same class; None where there is nothing to compare."""
    total, count = 0.0, 0
    with modes.frozen(teacher, student):
        for batch in torch.split(images, 64):
            answers = (student(batch.to(device)), teacher(batch.to(device)))
            share = task.agreement(*answers)
            if share is not None:
                total, count = total + share * len(batch), count + len(batch)
    return total / count if count else None


def refit_targets(
    teacher: nn.Module, student: nn.Module, followed: tuple[Followed, Followed], found: Correspondence, kept: Kept
) -> list[Target]:
    """What each layer of the student with a weight of inputs and outputs is refitted to."""
    ours, theirs = dict(bare(student).named_parameters()), dict(bare(teacher).named_parameters())
    targets = []
    for layer, source in found.modules.items():
        name, other = _weight(layer), _weight(source)
        if name not in ours or ours[name].ndim not in (2, 4) or name not in followed[1].outputs:
            continue
        cut = cut_of(name, other, ours[name], theirs[other], followed, kept)
        end = _end(layer, found) or source
        targets.append(
            Target(
                layer=layer,
                norm=_norm(followed[1], name),
                theirs=source,
                their_norm=_norm(followed[0], other),
                rows=kept_rows(cut, len(ours[name])),
                sum_of=end,
                sum_norm=_norm(followed[0], _weight(end)),
            )
        )
    return targets


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _norm(followed: Followed, weight: str) -> str | None:
    gain = followed.norms.get(weight)
    return None if gain is None else gain.rpartition(".")[0]


def _end(layer: str, found: Correspondence) -> str | None:
    """The same layer in the last of the teacher's blocks that the student's block stands for."""
    for block, last in found.ends.items():
        if layer.startswith(f"{block}."):
            return last + layer[len(block) :]
    return None


def _some(names: Iterable[Any]) -> str:
    listed = [str(name) for name in names]
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
