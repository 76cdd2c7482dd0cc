"""Groups of channels that go the same way through a network, and which of a teacher's channels a student keeps.

Two channels are of one group where the same tensors carry them and the same heads or groups own them: those of a
group may stand for one another. A student has the same groups with fewer channels in each. What a residual sum, a
concatenation, a gate or a flattened map ties together has been found by `follow`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from datafree.errors import NetworkError
from datafree.networks.pruning.channel_labels import Followed
from datafree.networks.pruning.channels import NONE, narrowed

Carriers = frozenset[tuple[str, str]]  # (a tensor of the student's, inputs or outputs)
Kind = tuple[Carriers, frozenset[Carriers]]  # what carries a channel, and what carries those it owns
Scores = Mapping[int, float]  # of a teacher's channels: the higher, the rather kept


@dataclass(kw_only=True)
class Kept:
    """Which of a teacher's channels stand for a student's."""

    teacher_of: dict[int, int] = field(default_factory=dict)  # student's variable -> teacher's
    groups: int = 0  # of channels
    loose: int = 0  # channels of the student that stand for one of another group, since their own has none left


@dataclass(kw_only=True)
class _Side:
    """The variables of one network as the student's tensors name them."""

    kinds: dict[int, Kind]
    owners: dict[int, frozenset[int]]
    owned: dict[int, list[int]]


def group(followed: Followed) -> list[list[int]]:
    """The groups of a network, each its variables in order; those that no tensor carries (heads) are left out."""
    side = _side(followed, {name: name for name in followed.inputs.keys() | followed.outputs.keys()})
    found: defaultdict[object, list[int]] = defaultdict(list)
    for variable in sorted(side.kinds):
        if side.kinds[variable][0]:
            found[side.kinds[variable], side.owners.get(variable)].append(variable)
    return list(found.values())


def keep(teacher: Followed, student: Followed, names: Mapping[str, str], scores: Scores) -> Kept:
    """Choose a teacher's channel for each of the student's: in each group those of the highest score, in order.

    `names`: the student's tensors -> the teacher's. Heads and groups of a convolution are chosen first, by the scores
    of all they own. Raises NetworkError where a student's layer is wider than its teacher's.
    """
    theirs, ours = _side(teacher, names), _side(student, {name: name for name in names})
    _refuse_wider(teacher, student, names)
    known = set(ours.kinds.values())
    theirs.owners = {  # a dropped block's heads own nothing any more
        one: frozenset(owner for owner in owners if theirs.kinds[owner] in known)
        for one, owners in theirs.owners.items()
    }
    kept, waiting = Kept(), set(ours.kinds)
    total = {one: _total(one, theirs, scores, set()) for one in theirs.kinds}
    while waiting:
        ready = sorted(one for one in waiting if not (ours.owners.get(one, frozenset()) & waiting))
        if not ready:
            ready = sorted(waiting)  # owners in a ring: each counts as found
        waiting -= set(ready)
        _choose(kept, ready, theirs, ours, total)
    _fill_loosely(kept, theirs, ours, total)
    return kept


def _choose(kept: Kept, ready: list[int], theirs: _Side, ours: _Side, total: Scores) -> None:
    """Match the student's variables `ready`, whose owners are matched."""
    taken = set(kept.teacher_of.values())
    wanted: defaultdict[object, list[int]] = defaultdict(list)
    offered: defaultdict[object, list[int]] = defaultdict(list)
    for one in ready:
        owners = frozenset(kept.teacher_of.get(owner, NONE) for owner in ours.owners.get(one, ()))
        wanted[ours.kinds[one], owners].append(one)
    for one in sorted(theirs.kinds):
        if one not in taken:
            offered[theirs.kinds[one], theirs.owners.get(one, frozenset())].append(one)
    for key, group_of_ours in wanted.items():
        best = sorted(offered[key], key=lambda one: (-total[one], one))[: len(group_of_ours)]
        kept.teacher_of.update(zip(group_of_ours, sorted(best), strict=False))
        kept.groups += 1


def _fill_loosely(kept: Kept, theirs: _Side, ours: _Side, total: Scores) -> None:
    """Match what is left by the tensors that carry both: as where channels that are shuffled go other ways."""
    left = [one for one in sorted(ours.kinds) if one not in kept.teacher_of and ours.kinds[one][0]]
    free = set(theirs.kinds) - set(kept.teacher_of.values())
    for one in left:
        mine = ours.kinds[one][0]
        near = [
            (len(mine & theirs.kinds[other][0]) / len(mine | theirs.kinds[other][0]), total[other], -other)
            for other in free
            if mine & theirs.kinds[other][0]
        ]
        if near:
            chosen = -max(near)[2]
            kept.teacher_of[one] = chosen
            free.discard(chosen)
            kept.loose += 1


def _total(one: int, side: _Side, scores: Scores, seen: set[int]) -> float:
    if one in seen:
        return 0.0
    seen.add(one)
    return scores.get(one, 0.0) + sum(_total(other, side, scores, seen) for other in side.owned.get(one, ()))


def _side(followed: Followed, names: Mapping[str, str]) -> _Side:
    carriers: defaultdict[int, set[tuple[str, str]]] = defaultdict(set)
    for ours, theirs in names.items():
        for role, tensors in (("inputs", followed.inputs), ("outputs", followed.outputs)):
            if theirs in tensors:
                for variable in np.unique(narrowed(tensors[theirs]).numpy()).tolist():
                    carriers[variable].add((ours, role))
    carriers.pop(NONE, None)
    owners = followed.channels.owners()
    owned: defaultdict[int, list[int]] = defaultdict(list)
    for one, its_owners in owners.items():
        for owner in its_owners:
            if one in carriers or one in owners:
                owned[owner].append(one)
    kinds = {
        one: (frozenset(carriers.get(one, ())), frozenset(frozenset(carriers.get(other, ())) for other in owned[one]))
        for one in sorted({*carriers, *(owner for owner, those in owned.items() if any(o in carriers for o in those))})
    }
    owners = {one: frozenset(owner for owner in its if owner in kinds) for one, its in owners.items() if one in kinds}
    return _Side(kinds=kinds, owners=owners, owned=dict(owned))


def _refuse_wider(teacher: Followed, student: Followed, names: Mapping[str, str]) -> None:
    for ours, theirs in names.items():
        for role, tensors, others in (
            ("outputs", student.outputs, teacher.outputs),
            ("inputs", student.inputs, teacher.inputs),
        ):
            if ours in tensors and theirs in others:
                mine, its = (len(np.unique(narrowed(x[n]).numpy())) for x, n in ((tensors, ours), (others, theirs)))
                if mine > its:
                    raise NetworkError(
                        f"the student's layer {ours.rpartition('.')[0]} has {mine} {role}, its teacher's {its}: a "
                        "student that starts from its teacher is nowhere wider; choose another, or init: random"
                    )


def selected(ours: Tensor, theirs: Tensor, kept: Kept) -> list[int]:
    """Places of the teacher's labels (t,) for each of the student's (s,); NONE where there is none.

    A variable that is there several times, as in a flattened map, has its places in order.
    """
    places: defaultdict[int, list[int]] = defaultdict(list)
    for index, variable in enumerate(theirs.tolist()):
        places[variable].append(index)
    used: defaultdict[int, int] = defaultdict(int)
    found = []
    for variable in ours.tolist():
        wanted = kept.teacher_of.get(variable, NONE - 1) if variable != NONE else NONE
        those, turn = places.get(wanted, []), used[wanted]
        used[wanted] += 1
        found.append(those[turn] if turn < len(those) else NONE)
    return found
