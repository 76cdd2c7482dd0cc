"""A teacher's tensors cut to a student's shapes, at the channels that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.normalized import bare
from datafree.networks.pruning.channel_labels import Followed
from datafree.networks.pruning.channels import narrowed
from datafree.networks.pruning.groups import Kept, selected


@dataclass(kw_only=True)
class Copied:
    """What was copied. Parameters are counted as the student's."""

    parameters: int = 0  # with a value of the teacher's
    new: int = 0  # left as the student was made
    whole: bool = True  # every tensor has the teacher's shape and all of its channels


@dataclass(kw_only=True)
class Cut:
    """The places of one of the teacher's tensors that a student's takes: along each axis, NONE where there is none."""

    axes: list[Tensor | None]  # None: all of them, in order
    rows: Tensor | None = None  # (O, I / G) along axis 1, for each row its own: of a grouped convolution

    def taken(self, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """The values, and which of them are the teacher's."""
        known = torch.ones((), dtype=torch.bool, device=theirs.device)
        for axis, places in enumerate(self.axes):
            if places is None:
                continue
            places = places.to(theirs.device)
            theirs = theirs.index_select(axis, places.clamp_min(0))
            known = known & (places >= 0).view([-1 if d == axis else 1 for d in range(theirs.ndim)])
        if self.rows is not None:
            rows = self.rows.to(theirs.device).view(*self.rows.shape, *[1] * (theirs.ndim - 2))
            theirs = theirs.gather(1, rows.clamp_min(0).expand(*self.rows.shape, *theirs.shape[2:]))
            known = known & (rows >= 0)
        return theirs, known.expand(theirs.shape)


@torch.no_grad()
def copy(
    teacher: nn.Module,
    student: nn.Module,
    followed: tuple[Followed, Followed],
    names: Mapping[str, str],
    kept: Kept,
) -> Copied:
    """Fill the student's parameters and buffers with the teacher's; `followed`: the teacher's channels, the student's.

    A column that reads a channel which the teacher's layer has not is zero, a row that makes one stays as it was.
    Raises NetworkError for a tensor of another shape whose channels are not known.
    """
    theirs = dict([*bare(teacher).named_parameters(), *bare(teacher).named_buffers()])
    parameters = dict(bare(student).named_parameters())
    stored = bare(student).state_dict(keep_vars=True).keys()
    copied = Copied()
    for name, ours in [*parameters.items(), *bare(student).named_buffers()]:
        source = theirs[names[name]]
        if name not in stored:
            continue
        if name not in followed[1].outputs and name not in parameters and source.shape != ours.shape:
            continue  # a table of the student's own, such as one of places
        cut = cut_of(name, names[name], ours, source, followed, kept)
        values, known = cut.taken(source)
        unread = _columns(cut, values)
        ours.copy_(torch.where(known, values, torch.where(unread, torch.zeros_like(values), ours)))
        if name in parameters:
            count = int(known.sum())
            copied.parameters += count
            copied.new += ours.numel() - count
            copied.whole = copied.whole and count == source.numel()
    return copied


def _columns(cut: Cut, values: Tensor) -> Tensor:
    """Where a weight reads a channel that is not there."""
    missing = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    if values.ndim > 1 and len(cut.axes) > 1 and cut.axes[1] is not None:
        places = cut.axes[1].to(values.device)
        missing |= (places < 0).view([-1 if d == 1 else 1 for d in range(values.ndim)])
    if values.ndim > 1 and cut.rows is not None:
        missing |= (cut.rows < 0).to(values.device).view(*cut.rows.shape, *[1] * (values.ndim - 2))
    return missing


def cut_of(
    name: str, source: str, ours: Tensor, theirs: Tensor, followed: tuple[Followed, Followed], kept: Kept
) -> Cut:
    """Where in the teacher's tensor `source` the student's tensor `name` has its values from."""
    cut = Cut(axes=[None] * ours.ndim)
    for role in ("outputs", "inputs"):
        one, other = (getattr(side, role).get(n) for side, n in zip(followed, (source, name), strict=True))
        if one is None or other is None or one.ndim != other.ndim:
            continue
        one, other = narrowed(one), narrowed(other)
        axes = [d for d in range(one.ndim) if one.shape[d] > 1 or other.shape[d] > 1]
        if len(axes) == 1:
            cut.axes[axes[0]] = torch.tensor(selected(other.reshape(-1), one.reshape(-1), kept))
        elif axes == [0, 1] and role == "inputs" and cut.axes[0] is not None:
            rows = zip(other.flatten(1), cut.axes[0].tolist(), strict=True)
            chosen = [selected(row, one[max(place, 0)].flatten(), kept) for row, place in rows]
            cut.rows = torch.tensor(chosen)
    for axis, places in enumerate(cut.axes):
        length = ours.shape[axis] if cut.rows is None or axis != 1 else theirs.shape[axis]
        if places is None and length != theirs.shape[axis]:
            raise _unknown(name, ours, theirs, followed)
        if places is not None and len(places) != ours.shape[axis]:
            raise _unknown(name, ours, theirs, followed)
    return cut


def _unknown(name: str, ours: Tensor, theirs: Tensor, followed: tuple[Followed, Followed]) -> NetworkError:
    lost = [op for side in followed for op in side.lost]
    behind = f", which are not followed through {lost[0]}" if lost else ""
    return NetworkError(
        f"the student's {name} is {tuple(ours.shape)}, its teacher's {tuple(theirs.shape)}, and which channels stand "
        f"for which cannot be told{behind}: choose another student, or init: random"
    )


def kept_rows(cut: Cut, count: int) -> Tensor:
    """(O,) the teacher's outputs for each of a layer's; NONE where there is none. `count`: O."""
    return torch.arange(count) if not cut.axes or cut.axes[0] is None else cut.axes[0]
