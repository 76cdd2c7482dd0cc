"""Labelled images for multi-label classification: a table of 0 and 1 beside the images (`labels.csv`).

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from datafree.data import images
from datafree.data.labelled import stream
from datafree.errors import DataError
from datafree.text import show

NAMES = ("labels.csv", "_classes.csv")  # ours, and what Roboflow's multi-label export is called
_LAYOUT = "labels.csv: a line `file,CLASS,CLASS,...`, then for each image its path and a 0 or 1 for each class"


class MultiLabelFolder:
    """Images named in labels.csv, in its order; paths are relative to the table.

    Images are scaled and cropped by `images.fit`. Only the table is read before images are asked for. Raises DataError
    if there is none, if its classes have not a name each or are not as many as the task's, or if it names an image
    twice.
    """

    skipped: list[str]  # "NAME.ext: reason" of each image that could not be read; grows while batches are read
    class_names: list[str]  # num_classes names

    def __init__(self, path: Path, *, image_size: tuple[int, int], num_classes: int) -> None:
        self.image_size = image_size  # (height, width), pixels
        self.skipped = []
        self._path = path
        self._file = next((path / name for name in NAMES if (path / name).is_file()), path / NAMES[0])
        (_, header), *rows = _rows(self._file)
        self.class_names = _class_names(self._file, header)
        if len(self.class_names) != num_classes:
            raise DataError(
                f"{self._file} has {len(self.class_names)} classes, but the task has num_classes {num_classes}; give "
                "it a column for each, in the order of the teacher's outputs"
            )
        self._items = [_item(self._file, number, row, num_classes) for number, row in rows]
        _require_once(self._file, [(number, name) for (number, _), (name, _) in zip(rows, self._items, strict=True)])

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) float32 in [0, 1], its labels (C,) int64 of 0 and 1. Raises UnreadableImage."""
        name, labels = self._items[index]
        image = images.fit(images.read_image(self._path / name), self.image_size)
        return images.to_tensor(image), torch.tensor(labels)

    def files(self, index: int) -> tuple[Path, ...]:
        return self._path / self._items[index][0], self._file

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, H, W) float32 in [0, 1] and labels (B, C) int64 of 0 and 1.

        The last batch may be smaller. Unreadable files are skipped and recorded; raises DataError if all are.
        """
        return stream(self.__getitem__, len(self), batch_size, self.skipped, self._path)


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with the line that it ends on, from 1 on; two at least."""
    if not file.is_file():
        raise DataError(f"there is no {file}; labelled images are expected with {_LAYOUT}")
    try:
        text = file.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {file} ({error}); it has to be {_LAYOUT}") from error
    if len(rows) < 2:
        raise DataError(f"{file} names no image; it has to be {_LAYOUT}")
    return rows


def _class_names(file: Path, header: list[str]) -> list[str]:
    """The classes' names, by which scores are told: each has to have one of its own."""
    names = [name.strip() for name in header[1:]]
    columns: dict[str, int] = {}
    for column, name in enumerate(names, 2):
        if not name:
            raise DataError(f"{file}: column {column} of {len(header)} has no class name; name it, or remove it")
        if name in columns:
            raise DataError(
                f"{file} names the class {show(name)} twice, in columns {columns[name]} and {column}; give each class "
                "its own name"
            )
        columns[name] = column
    return names


def _require_once(file: Path, named: Iterable[tuple[int, str]]) -> None:
    """Raise DataError if two lines, given with their numbers, name one image: it would count twice."""
    lines: dict[Path, int] = {}
    for number, name in named:
        first = lines.setdefault(Path(name), number)
        if first != number:
            raise DataError(f"{file} names the image {show(name)} twice, in lines {first} and {number}; remove one")


def _item(file: Path, number: int, row: list[str], num_classes: int) -> tuple[str, list[int]]:
    name, cells = row[0], [cell.strip() for cell in row[1:]]
    if len(cells) != num_classes or any(cell not in ("0", "1") for cell in cells):
        raise DataError(f"{file}, line {number}: {show(row[1:])} is not a 0 or 1 for each of {num_classes} classes")
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{file}, line {number}: {show(name)} is no image below the table's folder")
    return name, [int(cell) for cell in cells]


def table(rows: Iterable[tuple[str, list[int]]], class_names: list[str]) -> Iterator[str]:
    """labels.csv in pieces: its first line, then one for each image."""
    yield _line(["file", *class_names])
    for name, labels in rows:
        yield _line([name, *map(str, labels)])


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
