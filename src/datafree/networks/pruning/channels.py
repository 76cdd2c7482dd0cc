"""Channel variables: which positions of which tensors are one and the same channel of a network.

A variable is a number; what must be kept or dropped together is united into one (a union-find). A variable may have
owners: a head's channels are kept or dropped with their head, those of a grouped convolution with their group.

A tensor's labels are an int64 tensor of its shape, the variable of every entry; NONE where an entry is no channel.
Dimensions along which the labels do not change are expanded ones (stride 0), so that labels are small.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.int64]
Place = tuple[Any, ...]
NONE = -1  # the label of what is no channel, such as the zeros that pad a shortcut


class Channels:
    """Variables, united as they are found to be one; and who owns whom."""

    def __init__(self) -> None:
        self._parent: Numbers = np.zeros(0, dtype=np.int64)
        self._owned: list[tuple[Numbers, Numbers]] = []  # pairs of variables and their owners, rows alike

    def __len__(self) -> int:
        """How many variables there are, those that stand for others included."""
        return len(self._parent)

    def fresh(self, count: int) -> Tensor:
        """(count,) new variables."""
        first = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(first, first + count)])
        return torch.arange(first, first + count)

    def find(self, labels: Tensor) -> Tensor:
        """`labels`, each variable as the one that stands for all united with it; of the same compact form."""
        small = narrowed(labels)
        return torch.from_numpy(self.roots(small.numpy())).expand(labels.shape)

    def roots(self, labels: Numbers) -> Numbers:
        """As `find`, of an array."""
        if not len(self._parent):
            return labels
        found = np.where(labels >= 0, self._parent[labels], labels)
        while True:
            above = np.where(found >= 0, self._parent[found], found)
            if np.array_equal(above, found):
                break
            found = above
        known = labels >= 0
        self._parent[labels[known]] = found[known]
        return np.asarray(found, dtype=np.int64)

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Entries at equal places of two label tensors that broadcast are one variable; NONE joins nothing."""
        one, other = broadcast(narrowed(one), narrowed(other))
        pairs = np.stack([self.roots(one.numpy().ravel()), self.roots(other.numpy().ravel())], 1)
        pairs = np.unique(pairs[(pairs >= 0).all(1) & (pairs[:, 0] != pairs[:, 1])], axis=0)
        for left, right in pairs.tolist():
            low, high = sorted((self._root(left), self._root(right)))
            self._parent[high] = low

    def _root(self, variable: int) -> int:
        while (above := int(self._parent[variable])) != variable:
            variable = above
        return variable

    def own(self, labels: Tensor, owners: Tensor) -> None:
        """Each variable of `labels` belongs to the one at the same place of `owners`, which broadcasts."""
        labels, owners = broadcast(narrowed(labels), narrowed(owners))
        self._owned.append((labels.numpy().ravel().copy(), owners.numpy().ravel().copy()))

    def owners(self) -> dict[int, frozenset[int]]:
        """Variable -> its owners, of all variables that have some."""
        found: defaultdict[int, set[int]] = defaultdict(set)
        for labels, owners in self._owned:
            pairs = np.unique(np.stack([self.roots(labels), self.roots(owners)], 1), axis=0)
            for variable, owner in pairs.tolist():
                if variable >= 0 and owner >= 0 and variable != owner:
                    found[variable].add(owner)
        return {variable: frozenset(those) for variable, those in found.items()}

    def tied(self, labels: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Unite along `dims`; the labels of their first places, those dims of length 1."""
        first = labels
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self.unite(first, labels)
        return first

    def vary(self, labels: Tensor, dim: int) -> bool:
        """Whether the labels, as united so far, change along `dim`."""
        if labels.shape[dim] < 2 or labels.stride(dim) == 0:
            return False
        small = self.find(labels)
        return not torch.equal(small, small.narrow(dim, 0, 1).expand(labels.shape))


def broadcast(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(one.shape, other.shape)  # type: ignore[no-untyped-call]
    return one.expand(shape), other.expand(shape)


def narrowed(labels: Tensor) -> Tensor:
    """The same labels with every expanded dimension brought to length 1."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def compact(labels: Tensor) -> Tensor:
    """The same labels with every dimension along which they do not change expanded."""
    shape = labels.shape
    small = narrowed(labels)
    for dim, size in enumerate(small.shape):
        if size > 1:
            first = small.narrow(dim, 0, 1)
            if torch.equal(first.expand(small.shape), small):
                small = first
    return small.contiguous().expand(shape)


def none(shape: torch.Size) -> Tensor:
    """Labels of a tensor without channels."""
    return torch.full((), NONE, dtype=torch.int64).expand(shape)


def place(tensor: Tensor) -> Place:
    """Where and how a tensor lies in memory: equal for all that are the same numbers in the same order."""
    strides = tuple(s if n > 1 else 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), strides)
