"""Labelled images for detection: a COCO file with its images, or YOLO's folders of images and labels.

B images, M rows of targets, H x W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datafree.config import yaml
from datafree.data import images
from datafree.data.coco_yolo import Annotated, box_lines, read_coco, read_data_yaml, read_yolo
from datafree.data.detection_paths import (
    find_annotations,
    first_three,
    image_folder,
    is_file,
    label_files,
    label_folder,
    split_folder,
)
from datafree.data.image_sizes import check_sizes, check_told, other_size
from datafree.data.labelled import NothingToScore, names_file, read_names, stream
from datafree.errors import DataError
from datafree.ops import boxes
from datafree.text import one_line, show

_MOST_JSON, _MOST_TEXT = 2 * 10**9, 10**7  # bytes that a file may have

Rows = NDArray[np.float32]  # (N, 5) as targets, in pixels of image_size


@dataclass(frozen=True, kw_only=True)
class _Item:
    file: Path
    label: Path  # the file that its boxes stand in, among others' perhaps
    rows: Rows
    size: tuple[int, int] | None  # (height, width) that the boxes are of, where it is said
    twice: int  # boxes that another one equals
    bare: list[str]  # where its boxes without area stand, which are not among the rows

    @property
    def files(self) -> tuple[Path, Path]:
        return self.file, self.label


_Opened = tuple[list[str], Path, list[_Item]]  # the classes' names, a folder above all images, the images


class BoxFolder:
    """Images and their boxes. `path` is a COCO file, a folder that holds one, YOLO's folder or its data.yaml.

    COCO: the images are in images/, in a folder of the file's name (instances_val.json: images/val/ or val/) or beside
    the file; for a file in annotations/ also in these places one folder up. Class ids follow the order of the category
    ids. `classes.txt`, beside the file or one folder up, gives another order: a category's name a line; it may name
    classes without a category, and leave out categories without boxes.

    YOLO: images/ and labels/, an image without a label file has no boxes. data.yaml, in the folder (its val, else test,
    else train is read) or one up, or classes.txt names the classes. A folder that has both is read as COCO.

    Images are stretched to `image_size` with their boxes, which leaves the IoU of any two as it is. All annotations are
    read at once, and of COCO's images the headers, since their sizes are said; images as they are asked for. Raises
    DataError for annotations that cannot be meant, NothingToScore where no image has a box.
    """

    skipped: list[str]  # what is not scored: boxes without area; images that could not be read, as batches are read
    class_names: list[str]  # num_classes names
    rows: int  # M: the most boxes that any of the images has, at least 1

    def __init__(self, path: Path, *, image_size: tuple[int, int], num_classes: int) -> None:
        self.image_size = image_size  # (height, width), pixels
        coco, listing = find_annotations(path)
        if coco is not None:
            self.class_names, self._folder, self._items = _open_coco(coco, image_size, num_classes)
        else:
            self.class_names, self._folder, self._items = _open_yolo(path, listing, image_size, num_classes)
        check_sizes([(item.file, item.size) for item in self._items if item.size is not None])
        bare = [item.file.name for item in self._items for _ in item.bare]
        self.skipped = [f"{len(bare)} boxes without area, the first in {bare[0]}"] if bare else []
        twice = [item.file.name for item in self._items for _ in range(item.twice)]
        self._twice = f"{len(twice)} boxes that are given twice, the first in {twice[0]}" if twice else ""
        if twice and coco is None:
            self.skipped.append(self._twice)
        self._unlabelled = 0 if coco is not None else sum(not is_file(item.label) for item in self._items)
        self._turned: set[int] = set()  # images of which no size says how their labels lie
        self.rows = max(1, *(len(item.rows) for item in self._items))
        if not any((item.rows[:, 0] >= 0).any() for item in self._items):
            raise NothingToScore(f"{path} {self._what_is_lacking()}; give data with boxes", self)

    def _what_is_lacking(self) -> str:
        """Why there is no box to score by."""
        bare = [place for item in self._items for place in item.bare]
        if not bare:
            return f"has no box in any of its {len(self)} images"
        crowds = sum(len(item.rows) for item in self._items)
        found = f"{len(bare)} of its boxes" if crowds else f"all {len(bare)} boxes"
        others = ", and the others are crowds" if crowds else ""
        return f"has no box to score: {found} are without area, the first {bare[0]}{others}"

    @property
    def remarks(self) -> list[str]:
        """What was taken for granted of these labels, a line each."""
        found = []
        if self._unlabelled:
            found.append(
                f"{self._unlabelled:,} of {len(self):,} images have no label file: they count as without boxes"
            )
        if self._twice and self._twice not in self.skipped:
            found.append(f"scored twice: {self._twice}")
        if self._turned:
            found.append(
                f"{len(self._turned):,} images are turned by EXIF: their labels are taken to be of the picture "
                "upright, as YOLO's own trainer reads them"
            )
        return found

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) float32 in [0, 1], its boxes (M, 5). Raises UnreadableImage, DataError."""
        item = self._items[index]
        image, orientation = images.read_turned(item.file)
        if item.size is None:
            self._turned |= {index} if orientation != 1 else set()
        else:
            check_told(item.file, orientation, (image.height, image.width))
        if item.size is not None and (image.height, image.width) != item.size:  # changed since it was opened
            raise other_size(item.file, (image.height, image.width), item.size)
        targets = torch.zeros(self.rows, 5)
        targets[:, 0] = boxes.NONE
        targets[: len(item.rows)] = torch.from_numpy(item.rows)
        stretched = image.resize(self.image_size[::-1], Image.Resampling.BILINEAR)  # antialiased in shrinking
        return images.to_tensor(stretched), targets

    def files(self, index: int) -> tuple[Path, ...]:
        return self._items[index].files

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, H, W) float32 in [0, 1] and targets (B, M, 5), as in `datafree.ops.boxes`.

        M is the same for all batches; the last batch may be smaller. Unreadable images are skipped and recorded; raises
        DataError if all are.
        """
        return stream(self.__getitem__, len(self), batch_size, self.skipped, self._folder)


def _open_coco(file: Path, size: tuple[int, int], num_classes: int) -> _Opened:
    try:
        content = json.loads(_read(file, _MOST_JSON))
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{file} is no COCO file ({one_line(error)}); export it as COCO json") from error
    categories, annotated = read_coco(content, str(file))
    named = names_file(file.parent)
    names = categories if named is None else read_names(named)
    if len(names) != num_classes == len(categories):  # a classes.txt of something else that is kept there
        named, names = None, categories
    _check_count(names, num_classes, named or file, named or file.parent / "classes.txt")
    ids = np.array([names.index(category) if category in names else -1 for category in categories])
    folder = image_folder(file, [image.file_name for image in annotated])
    items = []
    for image in annotated:
        rows = _scaled(image.rows, image.size, size)
        crowd = rows[:, 0] < 0
        labels = np.where(crowd, -2 - rows[:, 0], rows[:, 0]).astype(int)
        if (ids[labels] < 0).any():
            strange = categories[labels[ids[labels] < 0][0]]
            raise DataError(
                f"{file}: {show(image.file_name)} has a box of the category {show(strange)}, which {named} does not "
                "name; add it there, or remove the box"
            )
        rows[:, 0] = np.where(crowd, -2 - ids[labels], ids[labels])
        where = partial(_annotation, file, image)
        items.append(_item(folder / image.file_name, file, rows, where, image.size))
    return names, folder, items


def _open_yolo(path: Path, listing: Path | None, size: tuple[int, int], num_classes: int) -> _Opened:
    if listing is not None:
        root = listing.parent
        names, given = _read_yaml(listing)
        folder = split_folder(root, given, listing)
    else:
        root, folder = path, path / "images"
        listing = next((file for file in (path.parent / "data.yaml",) if file.is_file()), None)
        names = _read_yaml(listing)[0] if listing else None
    named = listing if names is not None else names_file(root)
    if names is None:
        names = read_names(named) if named else [f"class {label}" for label in range(num_classes)]
    if named is not None:
        _check_count(names, num_classes, named, named)
    labels = label_folder(root, folder)
    files: dict[Path, Path] = {}  # label file -> image
    for file in images.list_images(folder):
        label = labels / file.relative_to(folder).with_suffix(".txt")
        if label in files:
            raise DataError(f"{files[label]} and {file} share the label file {label}; rename or remove one")
        files[label] = file
    there = set(filter(is_file, files))
    if labels != folder:
        there |= label_files(labels)
    alone = sorted(str(label.relative_to(labels)) for label in there - files.keys())
    if alone:
        raise DataError(
            f"{len(alone)} label files (of {len(there)}) in {labels} have no image in {folder}: {first_three(alone)}; "
            "add the images, or remove the labels"
        )
    if not there:
        raise DataError(f"{labels} holds no label files for the images in {folder}; they are expected as NAME.txt")
    items = []
    for label, file in files.items():  # an image without a label file has no boxes
        text = _text(label) if label in there else ""
        rows = read_yolo(text, width=size[1], height=size[0], num_classes=num_classes, where=str(label))
        where = partial(_line, label, text)
        items.append(_item(file, label, _scaled(rows, size, size), where))
    return names, root, items


def _read_yaml(file: Path) -> tuple[list[str] | None, list[str]]:
    try:
        content = yaml.parse(_text(file), str(file))
    except ValueError as error:
        raise DataError(str(error).splitlines()[0]) from error
    return read_data_yaml(content, str(file))


def _check_count(names: list[str], num_classes: int, file: Path, mend: Path) -> None:
    if len(names) != num_classes:
        some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise DataError(
            f"{file} names {len(names)} classes ({some}), but the task has num_classes {num_classes}; list all "
            f"{num_classes} in {mend}, in the order of the teacher's outputs, or set task.num_classes={len(names)}"
        )


def _scaled(rows: Sequence[Sequence[float]], size: tuple[int, int], wanted: tuple[int, int]) -> Rows:
    """(N, 5): rows of an image of `size` as they are in one of `wanted`."""
    down, right = wanted[0] / size[0], wanted[1] / size[1]
    scaled = np.array(rows, np.float64).reshape(-1, 5) * (1, right, down, right, down)
    return scaled.astype(np.float32)


def _item(
    file: Path, label: Path, rows: Rows, where: Callable[[int], str], size: tuple[int, int] | None = None
) -> _Item:
    """An image without its boxes of no area; `where` says where a row stands.

    A box that is given twice counts once where the format has no ids (YOLO's own trainer does so), else as often.
    """
    good = (rows[:, 3:] > rows[:, 1:3]).all(1)
    first = np.zeros(len(rows), bool)
    places = reversed(list(enumerate(map(tuple, rows.tolist()))))  # not np.unique, which takes 0.1 ms of each image
    first[list({row: place for place, row in places}.values())] = True
    return _Item(
        file=file,
        label=label,
        rows=rows[good & first] if size is None else rows[good],
        size=size,
        twice=int((good & ~first).sum()),
        bare=[where(int(row)) for row in np.flatnonzero(~good)],
    )


def _annotation(file: Path, image: Annotated, row: int) -> str:
    return f"{file}, annotation {show(image.keys[row])} (of {show(image.file_name)})"


def _line(label: Path, text: str, row: int) -> str:
    return f"{label}, line {box_lines(text)[row]}"


def _text(file: Path) -> str:
    try:
        return _read(file, _MOST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text; save it as such") from error


def _read(file: Path, most: int) -> bytes:
    try:
        if file.stat().st_size > most:
            raise DataError(f"{file} has {file.stat().st_size} bytes, more than {most}; split it")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; make it readable") from error
