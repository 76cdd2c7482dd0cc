"""Labelled images for classification, as a folder for each class (torchvision's ImageFolder).

B images, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from datafree.data import images
from datafree.data.labelled import names_file, read_names, stream
from datafree.errors import DataError

_LAYOUT = "CLASS/NAME.png (or another kind)"


class LabelFolder:
    """Images in `CLASS/NAME.ext`, perhaps deeper; the classes' ids are the order of their folders' names.

    `classes.txt`, in the folder or its parent, gives another order: one folder's name a line, the first is class 0; it
    may name classes of which no image is there. Images are scaled and cropped by `images.fit`. Only names are read
    before images are asked for. Raises DataError if folders are missing or are not the task's classes.
    """

    skipped: list[str]  # "CLASS/NAME.ext: reason" of each image that could not be read; grows while batches are read
    class_names: list[str]  # num_classes names

    def __init__(self, path: Path, *, image_size: tuple[int, int], num_classes: int) -> None:
        self.image_size = image_size  # (height, width), pixels
        self.skipped = []
        self._path = path
        folders = _class_folders(path)
        self.class_names = _class_names(path, folders, num_classes)
        self._items = [
            (file, label)
            for label, name in enumerate(self.class_names)
            if name in folders
            for file in images.list_images(path / name)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) float32 in [0, 1], its class id () int64. Raises UnreadableImage."""
        file, label = self._items[index]
        image = images.fit(images.read_image(file), self.image_size)
        return images.to_tensor(image), torch.tensor(label)

    def files(self, index: int) -> tuple[Path, ...]:
        return (self._items[index][0],)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, H, W) float32 in [0, 1] and class ids (B,) int64, class by class.

        The last batch may be smaller. Unreadable files are skipped and recorded; raises DataError if all are.
        """
        return stream(self.__getitem__, len(self), batch_size, self.skipped, self._path)


def _class_folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; labelled images are expected in it as {_LAYOUT}")
    try:
        folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list {path}: {error.strerror}; make it readable") from error
    if not folders:
        raise DataError(f"{path} holds no folders; labelled images are expected in it as {_LAYOUT}")
    return folders


def _class_names(path: Path, folders: list[str], num_classes: int) -> list[str]:
    """The classes' names in the order of their ids."""
    file = names_file(path)
    names = folders if file is None else read_names(file)
    if len(names) != num_classes:
        where = f"{path} has {len(names)} folders" if file is None else f"{file} names {len(names)} classes"
        raise DataError(
            f"{where} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}), but the task has num_classes "
            f"{num_classes}; list all {num_classes} in classes.txt, a folder's name a line, in the order of the "
            "teacher's outputs"
        )
    strange = [name for name in folders if name not in names]
    if strange:
        raise DataError(f"{path} has a folder {strange[0]!r} that {file} does not name; add it there, or move it away")
    return names
