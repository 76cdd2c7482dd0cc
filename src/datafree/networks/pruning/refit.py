"""Refit a pruned student layer by layer to its teacher's feature maps, from the input to the output, in closed form.

He et al., "Channel pruning for accelerating very deep neural networks", arXiv 1707.06168, and ThiNet (Luo et al.,
arXiv 1707.06342) refit what is left of a layer by least squares; here all layers, in the order they run. What a layer
takes is what the student makes of the images as it is by then, so that later layers make up for earlier ones; what it
is to answer is the teacher's answer at the kept channels, behind the BatchNorm where there is one. Of a layer whose
answer is added to another map, the sum is what is to be right (section 3.2 there): the teacher's sum, of the last of
the blocks that the student's block stands for, less the student's other map.

Each layer sees a sample of positions; positions, products and solutions do not depend on how images are batched but
for the sample. With one batch the student is run once: every layer is solved as it is reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from datafree.networks.normalized import bare
from datafree.networks.pruning import least_squares
from datafree.networks.pruning.equations import Equations, equations
from datafree.networks.pruning.fixed_time import FixedTime
from datafree.networks.pruning.least_squares import Layer
from datafree.networks.pruning.sampling import GIB, RefitOptions, Sample, Target
from datafree.networks.pruning.sums import SumWatch
from datafree.ops import modes

_LIVE = 8  # maps of the largest size that are in memory at once: padded, reordered, before and behind a layer


@dataclass(kw_only=True)
class Refitted:
    """What was refitted."""

    errors: dict[str, float] = field(default_factory=dict)  # layer -> the share of the targets' variance that is left
    skipped: dict[str, str] = field(default_factory=dict)  # layer -> why


class _Reached(Exception):
    """The layer wanted has been seen: the rest of the pass is not needed."""


@torch.no_grad()
def refit(
    teacher: nn.Module,
    student: nn.Module,
    targets: list[Target],
    images: Tensor,
    options: RefitOptions,
    fixed: FixedTime | None = None,
) -> Refitted:
    """Refit `targets` of `student`, whose channels are the teacher's, on `images` (B, 3, H, W), in its place.

    `images` come to the networks' device batch by batch. The teacher's answers at the sampled positions are kept for
    all layers: positions x outputs x 4 bytes each.
    """
    device, fixed = next(bare(student).parameters()).device, fixed or FixedTime()
    with modes.frozen(teacher, student):
        with fixed.counted():
            order, done, largest = _in_order(student, targets, images[:1].to(device))
        batches = list(torch.split(images, options.batch or max(1, int(options.memory * GIB / (_LIVE * largest)))))
        sample = Sample(student, order, options, len(images))
        with _Teacher(teacher, order, sample) as theirs:
            for index, batch in enumerate(batches):
                theirs.run(index, batch.to(device))
        rounds = [order] if len(batches) == 1 else [[target] for target in order]
        for wanted in rounds:
            with _Student(student, wanted, sample, done, len(batches), fixed) as ours:
                for index, batch in enumerate(batches):
                    ours.run(index, batch.to(device))
    for target in order:
        if target.layer not in done.errors:
            done.skipped.setdefault(target.layer, "its sum with another map is not seen")
    return done


def _in_order(student: nn.Module, targets: list[Target], images: Tensor) -> tuple[list[Target], Refitted, int]:
    """The targets in the order they run, those skipped that cannot be solved for, and the bytes of the largest map."""
    done, calls, largest = Refitted(), list[str](), 1
    modules = dict(bare(student).named_modules())
    named = {target.layer: target for target in targets}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
            nonlocal largest
            calls.append(name)
            largest = max(largest, 4 * inputs[0].numel(), 4 * answer.numel())

        return hook

    handles = [modules[name].register_forward_hook(note(name)) for name in named]
    try:
        student(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, target in named.items():
        norm = modules[target.norm] if target.norm else None
        if not least_squares.can_solve(modules[name]):
            done.skipped[name] = f"no rule for a {type(modules[name]).__name__}"
        elif calls.count(name) != 1:
            done.skipped[name] = f"runs {calls.count(name)} times"
        elif norm is not None and not least_squares.can_hold(norm):
            done.skipped[name] = "the normalisation behind it keeps no statistics"
    return [named[name] for name in dict.fromkeys(calls) if name not in done.skipped], done, largest


class _Teacher(SumWatch):  # type: ignore[no-untyped-call]
    """Samples what the teacher answers."""

    def __init__(self, teacher: nn.Module, targets: list[Target], sample: Sample) -> None:
        self.targets, self.sample, self.network = targets, sample, teacher
        answers = {target.theirs: target.their_norm or target.theirs for target in targets}
        super().__init__(teacher, answers | {target.sum_of: target.sum_norm or target.sum_of for target in targets})
        self.batch = self.images = 0

    def run(self, batch: int, images: Tensor) -> None:
        self.batch, self.images = batch, len(images)
        self.network(images)

    def answered(self, layer: str, answer: Tensor) -> None:
        for target in self.targets:
            if target.theirs == layer:
                linear = isinstance(self.modules[layer], nn.Linear)
                positions = self.sample.choose(target.layer, self.batch, self.images, answer, linear)
                values = least_squares.at(answer, positions, self.sample.sizes[target.layer, self.batch])
                self.sample.values[target.layer, self.batch] = values[:, target.rows.clamp_min(0)]

    def added(self, known: Mapping[str, int], func: Any, args: tuple[Tensor, Tensor]) -> Tensor:
        total: Tensor = func(*args)
        layer = [*known][-1]  # of two layers, it is the later one that can make up for the other
        for target in self.targets:
            key = (target.layer, self.batch)
            if target.sum_of == layer and self.sample.options.sums and key in self.sample.positions:
                values = least_squares.at(total, self.sample.positions[key], self.sample.sizes[key])
                self.sample.sums[key] = values[:, target.rows.clamp_min(0)]
        return total


class _Student(SumWatch):  # type: ignore[no-untyped-call]
    """Solves the layers wanted as the student's passes reach them, each once it has seen all batches."""

    def __init__(
        self,
        student: nn.Module,
        targets: list[Target],
        sample: Sample,
        done: Refitted,
        batches: int,
        fixed: FixedTime,
    ) -> None:
        self.sample, self.done, self.batches, self.network, self.fixed = sample, done, batches, student, fixed
        self.targets = {target.layer: target for target in targets}
        super().__init__(student, {target.layer: target.norm or target.layer for target in targets})
        self.batch = 0
        self.taken: dict[str, tuple[Tensor, Tensor]] = {}  # layers before a sum: what they take, as a map and sampled
        self.equations: dict[str, Equations] = {}
        for target in targets:
            self.handles.append(self.modules[target.layer].register_forward_pre_hook(self._before(target)))

    def run(self, batch: int, images: Tensor) -> None:
        self.batch = batch
        with suppress(_Reached):
            self.network(images)

    def _before(self, target: Target) -> Any:
        def hook(layer: Layer, inputs: tuple[Tensor, ...]) -> None:
            if self.busy:
                return
            x, key = inputs[0], (target.layer, self.batch)
            if least_squares.answer_size(layer, x) != self.sample.sizes.get(key):
                self.done.skipped[target.layer] = "its teacher's has maps of another size"
                return
            if self.sample.equations_bytes(target.layer, self.fixed.share) > self.sample.options.largest * GIB:
                self.done.skipped[target.layer] = f"its equations are larger than {self.sample.options.largest:g} GiB"
                return
            with self.fixed.counted(more=self.sample.grows(target.layer, self.fixed.share)):
                sampled = least_squares.patches(layer, x, self.sample.positions[key], self.sample.sizes[key])
            if key in self.sample.sums:
                self.taken[target.layer] = (x, sampled)
            else:
                self._seen(target, sampled, self.sample.values[key])

        return hook

    def added(self, known: Mapping[str, int], func: Any, args: tuple[Tensor, Tensor]) -> Tensor:
        """Solve for what is to be added, make it again, and add that."""
        for layer, turn in [(layer, turn) for layer, turn in known.items() if layer in self.taken][-1:]:
            target, key = self.targets[layer], (layer, self.batch)
            x, sampled = self.taken.pop(layer)
            other = least_squares.at(args[1 - turn], self.sample.positions[key], self.sample.sizes[key])
            self._seen(target, sampled, self.sample.sums[key] - other)
            with self.apart():
                answer = self.modules[layer](x)
                args[turn].copy_(self.modules[target.norm](answer) if target.norm else answer)
        total: Tensor = func(*args)
        return total

    def _seen(self, target: Target, sampled: Tensor, wanted: Tensor) -> None:
        """Add a batch's sums; with the last, solve. `sampled` (G, P, K), `wanted` (P, O of all groups)."""
        layer: Any = self.modules[target.layer]
        norm: Any = self.modules[target.norm] if target.norm else None
        groups, _, inputs = sampled.shape
        wanted = wanted.view(len(wanted), groups, -1).transpose(0, 1)
        if target.layer not in self.equations:
            count = self.sample.count(target.layer, self.fixed.share)
            self.equations[target.layer] = equations(count, groups, inputs, wanted.shape[2], wanted.device)
        with self.fixed.counted(more=self.sample.grows(target.layer, self.fixed.share)):
            self.equations[target.layer].add(sampled, wanted)
        if self.batch == self.batches - 1:
            self._solve(target, layer, norm, (groups, inputs, wanted.shape[2]))
        if self.batches > 1:
            raise _Reached

    def _solve(self, target: Target, layer: Any, norm: Any, shape: tuple[int, int, int]) -> None:
        """Solve for a layer, and put its weights into it; not where it is but timed, and one of its `shape` was."""
        offset, found = norm is not None or layer.bias is not None, self.equations.pop(target.layer)
        if self.fixed.is_known((shape, offset)):
            return
        with self.fixed.counted((shape, offset)):
            prior = least_squares.folded(layer, norm)
            solution = found.solve(prior, self.sample.options.ridge, offset)
        if bool(torch.isfinite(solution.weight).all()):
            least_squares.put(layer, norm, solution, (target.rows >= 0).to(layer.weight.device))
            self.done.errors[target.layer] = solution.error
        else:
            self.done.skipped[target.layer] = "its equations have no finite solution"
