"""Layers of a student and of its teacher, matched by name and kind; blocks that a shallower student does without.

A block is a child of a numbered container (nn.Sequential, nn.ModuleList). Where a student's container has fewer
blocks, its first is the teacher's first, which often changes the size; the others are spread evenly over the
teacher's, or are those whose removal would change most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.normalized import bare
from datafree.ops import modes

Drop = Literal["even", "effect"]  # which blocks a shallower student does without
WAY_OUT = "choose a narrower or shallower member of its family, or init: random"


@dataclass(kw_only=True)
class Correspondence:
    """The student's modules -> the teacher's, by name; "" is the whole network."""

    modules: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)  # the teacher's blocks that the student has not
    ends: dict[str, str] = field(default_factory=dict)  # student's block -> the teacher's last block it stands for

    def tensors(self, student: nn.Module) -> dict[str, str]:
        """The student's parameters and buffers -> the teacher's."""
        found = {}
        for name, _ in [*student.named_parameters(), *student.named_buffers()]:
            layer, _, leaf = name.rpartition(".")
            found[name] = f"{self.modules[layer]}.{leaf}" if layer else leaf
        return found


def correspond(teacher: nn.Module, student: nn.Module, effects: Mapping[str, float] | None = None) -> Correspondence:
    """Match the layers of two networks, adapted or bare.

    `effects`: of the teacher's blocks, as `block_effects` tells; without, those kept are evenly spread. Raises
    NetworkError, naming the first layer that has no match.
    """
    found = Correspondence()
    _match(bare(teacher), bare(student), "", "", found, effects)
    return found


def _match(
    teacher: nn.Module,
    student: nn.Module,
    their: str,
    our: str,
    found: Correspondence,
    effects: Mapping[str, float] | None,
) -> None:
    one, other = _own_form(teacher), _own_form(student)
    if one != other:
        raise NetworkError(
            f"the student's layer {our or 'network'} is {_said(student)}, its teacher's {_said(teacher)}: {WAY_OUT}"
        )
    found.modules[our] = their
    theirs, ours = _with_tensors(teacher), _with_tensors(student)
    if len(theirs) != len(ours) and _are_numbered(theirs) and _are_numbered(ours):
        pairs = _aligned(list(theirs.items()), list(ours.items()), their, our, effects)
        _note_dropped(list(theirs), [t for t, _ in pairs], [s for _, s in pairs], their, our, found)
    else:
        for name in [*ours, *theirs]:
            if (name in ours) != (name in theirs):
                who, whose = ("student", "teacher") if name in ours else ("teacher", "student")
                raise NetworkError(f"the {who} has a layer {_join(our, name)} that the {whose} has not: {WAY_OUT}")
        pairs = [(name, name) for name in ours]
    for t, s in pairs:
        _match(theirs[t], ours[s], _join(their, t), _join(our, s), found, effects)


def _note_dropped(
    all_theirs: list[str], kept: list[str], ours: list[str], their: str, our: str, found: Correspondence
) -> None:
    places = [all_theirs.index(name) for name in kept]
    for place, after, mine in zip(places, [*places[1:], len(all_theirs)], ours, strict=True):
        found.ends[_join(our, mine)] = _join(their, all_theirs[after - 1])
        found.dropped += [_join(their, name) for name in all_theirs[place + 1 : after]]


def _aligned(
    theirs: list[tuple[str, nn.Module]],
    ours: list[tuple[str, nn.Module]],
    their: str,
    our: str,
    effects: Mapping[str, float] | None,
) -> list[tuple[str, str]]:
    """Pairs of the teacher's and the student's blocks of equal form, in order; the first are a pair.

    The least sum of distances from an even spread, or of effects dropped, by dynamic programming: cost[j][i] is that of
    the first j + 1 of the student's, the last of them on the teacher's i.
    """
    n, m = len(theirs), len(ours)
    if m > n:
        raise NetworkError(f"the student's {our or 'network'} has {m} blocks, its teacher's {n}: {WAY_OUT}")
    forms = [[_form(block) for _, block in side] for side in (theirs, ours)]
    cost = [[math.inf] * n for _ in range(m)]
    before = [[0] * n for _ in range(m)]
    for j in range(m):
        for i in range(j, n):
            if forms[0][i] != forms[1][j] or (j == 0) != (i == 0):
                continue
            best = min(range(i), key=lambda k: cost[j - 1][k]) if j else 0
            here = _cost(i, j, n, m, _join(their, theirs[i][0]), effects)
            cost[j][i], before[j][i] = here + (cost[j - 1][best] if j else 0.0), best
    last = min(range(n), key=lambda i: cost[m - 1][i])
    if cost[m - 1][last] == math.inf:
        j = next(j for j in range(m) if all(one == math.inf for one in cost[j]))
        raise NetworkError(
            f"the student's layer {_join(our, ours[j][0])} is like none of its teacher's {their}: {WAY_OUT}"
        )
    chosen = [last]
    for j in range(m - 1, 0, -1):
        chosen.append(before[j][chosen[-1]])
    return [(theirs[i][0], ours[j][0]) for j, i in enumerate(reversed(chosen))]


def _cost(i: int, j: int, n: int, m: int, name: str, effects: Mapping[str, float] | None) -> float:
    if effects is not None and name in effects:
        return -min(effects[name], 1e6)
    return abs(i - j * (n - 1) / max(m - 1, 1))


@torch.no_grad()
def block_effects(teacher: nn.Module, images: Tensor) -> dict[str, float]:
    """Of each block that answers in the shape it takes: 1 - cosine of what it takes and answers, on `images`.

    Men et al., "ShortGPT", arXiv 2403.03853, section 2.2 (block influence), for maps as for tokens.
    """
    effects: dict[str, float] = {}
    taken: dict[str, Tensor] = {}

    def before(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def take(block: nn.Module, inputs: tuple[object, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                taken[name] = inputs[0].clone()  # the block may change it in place

        return take

    def after(name: str) -> Callable[[nn.Module, object, object], None]:
        def compare(block: nn.Module, inputs: object, answer: object) -> None:
            x = taken.pop(name, None)
            if x is not None and isinstance(answer, Tensor) and x.shape == answer.shape:
                effects[name] = 1 - float(F.cosine_similarity(x.flatten(1), answer.flatten(1)).mean())

        return compare

    blocks = {name: m for name, m in bare(teacher).named_modules() if re.search(r"\d$", name)}
    handles = [block.register_forward_pre_hook(before(name)) for name, block in blocks.items()]
    handles += [block.register_forward_hook(after(name)) for name, block in blocks.items()]
    try:
        with modes.frozen(teacher):
            teacher(images)
    finally:
        for handle in handles:
            handle.remove()
    return effects


# --- what a layer is, but for its channels ---


def _with_tensors(module: nn.Module) -> dict[str, nn.Module]:
    """The children that hold any parameter or buffer."""
    return {
        name: child
        for name, child in module.named_children()
        if next(child.parameters(), None) is not None or next(child.buffers(), None) is not None
    }


def _are_numbered(children: Mapping[str, nn.Module]) -> bool:
    """Whether they are called as parts of a row: 0, 1, ...; block3-0, block3-1, ..."""
    ends = [re.fullmatch(r"(.*?)\d+", name) for name in children]
    return len({end and end[1] for end in ends}) == 1 and None not in ends


def _own_form(module: nn.Module) -> tuple[object, ...]:
    """The tensors of its own and what is fixed of their use: kernel, stride, dilation."""
    named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    tensors = tuple((name, tensor.ndim, tuple(tensor.shape[2:]) if tensor.ndim > 3 else ()) for name, tensor in named)
    if isinstance(module, nn.modules.conv._ConvNd):
        return (*tensors, module.stride, module.dilation, module.transposed)
    return tensors


def _form(module: nn.Module) -> tuple[object, ...]:
    return tuple((name, _own_form(part)) for name, part in module.named_modules() if _own_form(part))


def _said(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.modules.conv._ConvNd):
        return f"a {kind} of {' x '.join(map(str, module.kernel_size))}, stride {module.stride[0]}"
    names = [name for name, _ in module.named_parameters(recurse=False)]
    return f"a {kind} with {', '.join(names)}" if names else f"a {kind} without parameters of its own"


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name
