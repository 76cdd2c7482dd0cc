"""Real images beside the made ones: some calibrate, the others compare; labelled ones score, too.

N images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from datafree.data.images import UnreadableImage, list_images
from datafree.data.labelled import LabelledData, NothingToScore
from datafree.data.unlabelled import read_fitted, unread
from datafree.errors import DataError
from datafree.storage import made_set
from datafree.tasks.base import Task
from datafree.tasks.labelled import open_labelled

COMPARED = 200  # images at most


@dataclass(frozen=True, kw_only=True)
class Real:
    """Images of a folder: every second calibrates, those between compare."""

    learnt: Tensor  # (N, 3, H, W) uint8
    compared: Tensor  # (M, 3, H, W) uint8
    labelled: LabelledData | None  # the images compared, with their labels, where there are some
    notes: list[str]


def read_real(task: Task, folder: Path, count: int, class_names: Sequence[str] = ()) -> Real:
    """Up to `count` images to calibrate with and COMPARED to compare on, spread over a folder. Raises DataError.

    `class_names`: the network's, as `open_labelled` takes them.
    """
    try:
        data = open_labelled(task, folder, class_names)
    except NothingToScore as error:
        data = error.data
    except DataError as error:
        return _unlabelled(task, made_set.data_of(folder), count, [f"the real images are not scored on: {error}"])
    skipped: list[str] = []
    learnt = _read(data, spread(range(0, len(data), 2), count), skipped)
    indices = spread(range(1, len(data), 2), COMPARED)
    compared = _read(data, indices, skipped)
    _require(folder, learnt, compared)
    return Real(
        learnt=torch.stack(learnt),
        compared=torch.stack(compared),
        labelled=_Some(data=data, indices=indices, class_names=data.class_names),
        notes=[unread(skipped)] if skipped else [],
    )


def photos(task: Task, folder: Path, count: int) -> tuple[Tensor, list[str]]:
    """Up to `count` images (N, 3, H, W) uint8 spread over a folder, and what of it was left out. Raises DataError."""
    skipped: list[str] = []
    folder = made_set.data_of(folder)
    files = list_images(folder)
    chosen = [files[index] for index in spread(range(len(files)), count)]
    images = [(pixels * 255).round().byte() for pixels in read_fitted(chosen, task.image_size, skipped, folder)]
    return torch.stack(images), [unread(skipped)] if skipped else []


def spread(indices: Sequence[int], count: int) -> list[int]:
    """Up to `count` of them, from the first to the last."""
    if len(indices) <= count:
        return list(indices)
    return [indices[index * len(indices) // count] for index in range(count)]


def _unlabelled(task: Task, folder: Path, count: int, notes: list[str]) -> Real:
    inner = (folder / "data" / "images", folder / "images")  # of sets with masks or boxes beside the images
    folder = next((place for place in inner if place.is_dir()), folder)
    files = list_images(folder)
    skipped: list[str] = []

    def read(chosen: list[int]) -> list[Tensor]:
        found = read_fitted([files[index] for index in chosen], task.image_size, skipped, folder)
        return [(pixels * 255).round().byte() for pixels in found]

    learnt = read(spread(range(0, len(files), 2), count))
    compared = read(spread(range(1, len(files), 2), COMPARED)) if len(files) > 1 else []
    _require(folder, learnt, compared)
    notes = [*notes, unread(skipped)] if skipped else notes
    return Real(learnt=torch.stack(learnt), compared=torch.stack(compared), labelled=None, notes=notes)


def _require(folder: Path, learnt: list[Tensor], compared: list[Tensor]) -> None:
    if len(learnt) < 2 or not compared:
        raise DataError(f"{folder} holds {len(learnt) + len(compared)} images; give --data some ten to compare with")


def _read(data: LabelledData, indices: list[int], skipped: list[str]) -> list[Tensor]:
    found = []
    for index in indices:
        try:
            found.append((data[index][0] * 255).round().byte())
        except UnreadableImage as error:
            skipped.append(f"{error.path.name} ({error.reason})")
    return found


@dataclass(kw_only=True)
class _Some:
    """Some of a labelled set, as one of its own."""

    data: LabelledData
    indices: list[int]
    class_names: list[str]
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[self.indices[index]]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Those that can be read."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for index in range(len(self)):
            try:
                pairs.append(self[index])
            except UnreadableImage as error:
                self.skipped.append(f"{error.path.name}: {error.reason}")
            if pairs and (len(pairs) == batch_size or index == len(self) - 1):
                yield torch.stack([image for image, _ in pairs]), torch.stack([target for _, target in pairs])
                pairs = []
