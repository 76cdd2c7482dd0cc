"""Labelled data opened for a task, its classes in the order of a network that has names for them.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from datafree.data.labelled import LabelledData, NamesFiles, Remarked, composed
from datafree.storage import made_set
from datafree.tasks.base import Task
from datafree.text import show


def open_labelled(task: Task[Any], path: Path, known: Sequence[str] = ()) -> LabelledData:
    """The labelled data at `path`; of a made data set what it holds, if it is finished. Raises DataError, RunError.

    `known`: the names of a network's outputs, in their order; empty where nobody has said. Data that names the same
    classes in another order are brought into theirs, data without names get them; for other names a remark is left.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100  # so that what lies one folder up is found from "." and ".."
    data = task.open_dataset(made_set.data_of(whole))
    names = data.class_names
    if not known or list(known) == names:
        return data
    if not real_names(names):
        return Ordered(data, task, list(known), list(range(len(names))), "")
    if not real_names(known):
        return data
    place = {_alike(name): output for output, name in enumerate(known)}
    order = [place.get(_alike(name), -1) for name in names]
    if sorted(order) == list(range(len(known))):
        line = f"classes are in the network's own order ({_some(known)}), not the data's ({_some(names)})"
        return Ordered(data, task, list(known), order, line if order != sorted(order) else "")
    line = f"the network's classes have other names ({_some(known)}) than the data's ({_some(names)}): taken in order"
    return Ordered(data, task, names, list(range(len(names))), line)


def names_of(data: LabelledData) -> list[str]:
    """The classes' names, or none where the data gave but numbers."""
    return real_names(data.class_names)


def real_names(names: Sequence[str]) -> list[str]:
    """The names, or none where they are but numbers."""
    plain = [f"class {index}" for index in range(len(names))]
    return [] if list(names) in (plain, numbered(len(names))) else list(names)


def numbered(count: int) -> list[str]:
    """Names for classes that have none: they sort as the ids do, as those of folders must."""
    return [f"class {index:0{len(str(count - 1))}}" for index in range(count)]


@final
class Ordered:
    """Labelled data under other names: class c of it is class `order[c]` (C numbers) here."""

    def __init__(self, data: LabelledData, task: Task[Any], names: list[str], order: list[int], remark: str) -> None:
        self.class_names, self.skipped = names, data.skipped  # the list itself, which grows
        self._data, self._task, self._remark = data, task, remark
        self._order = torch.tensor(order) if order != sorted(order) else None

    @property
    def remarks(self) -> list[str]:
        """A line on the order, and what is to be known of the data itself."""
        theirs = self._data.remarks if isinstance(self._data, Remarked) else []
        return [*([self._remark] if self._remark else []), *theirs]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self._data.batches(batch_size):
            yield images, self._renumbered(targets)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self._data[index]
        return image, self._renumbered(target[None])[0]

    def files(self, index: int) -> Sequence[Path]:
        """Those of the data, as far as it knows them."""
        return self._data.files(index) if isinstance(self._data, NamesFiles) else ()

    def _renumbered(self, targets: Tensor) -> Tensor:
        return targets if self._order is None else self._task.renumbered(targets, self._order)


def _alike(name: str) -> str:
    """A name without what is written one way or the other."""
    return composed(name).casefold().replace("_", " ").strip()


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(show, names[:4])) + (", ..." if len(names) > 4 else "")
