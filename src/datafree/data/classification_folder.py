"""Labelled images for classification, as a folder for each class (torchvision's ImageFolder).

B images, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from datafree.data import images
from datafree.data.labelled import composed, names_file, read_names, stream
from datafree.errors import DataError

_LAYOUT = "CLASS/NAME.png (or another kind)"


class LabelFolder:
    """Images in `CLASS/NAME.ext`, perhaps deeper; the classes' ids are the order of their folders' names.

    `classes.txt`, in the folder or its parent, gives another order: one folder's name a line, the first is class 0; it
    may name classes of which no image is there, or no folder. Names are compared as `labelled.composed`. Images are
    scaled and cropped by `images.fit`. Only names are read before images are asked for. Raises DataError if folders are
    missing or are not the task's classes.
    """

    skipped: list[str]  # "CLASS/NAME.ext: reason" of each image that could not be read; grows while batches are read
    class_names: list[str]  # num_classes names

    def __init__(self, path: Path, *, image_size: tuple[int, int], num_classes: int) -> None:
        self.image_size = image_size  # (height, width), pixels
        self.skipped = []
        self._path = path
        folders, file = _class_folders(path), names_file(path)
        self.class_names = _class_names(path, list(folders.values()), file, num_classes)
        self._items = [
            (image, label)
            for label, name in enumerate(self.class_names)
            if composed(name) in folders
            for image in images.list_images(path / folders[composed(name)], may_be_empty=file is not None)
        ]
        if not self._items:
            raise DataError(f"{path}: no folder of a class holds an image; labelled images are expected as {_LAYOUT}")

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


def _class_folders(path: Path) -> dict[str, str]:
    """The folders' names in their order, by what they are compared as."""
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; labelled images are expected in it as {_LAYOUT}")
    try:
        folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list {path}: {error.strerror}; make it readable") from error
    if not folders:
        raise DataError(f"{path} holds no folders; labelled images are expected in it as {_LAYOUT}")
    found: dict[str, str] = {}
    for folder in folders:
        if found.setdefault(composed(folder), folder) != folder:
            raise DataError(
                f"{path} has two folders {composed(folder)!r}, whose accents are encoded in two ways (NFC, NFD); "
                "move the images into one"
            )
    return found


def _class_names(path: Path, folders: list[str], file: Path | None, num_classes: int) -> list[str]:
    """The classes' names in the order of their ids; `file` is classes.txt."""
    names = folders if file is None else read_names(file)
    if len(names) != num_classes:
        where = f"{path} has {len(names)} folders" if file is None else f"{file} names {len(names)} classes"
        raise DataError(
            f"{where} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}), but the task has num_classes "
            f"{num_classes}; list all {num_classes} in classes.txt, a folder's name a line, in the order of the "
            "teacher's outputs"
        )
    known = set(map(composed, names))
    strange = [name for name in folders if composed(name) not in known]
    if strange:
        raise DataError(f"{path} has a folder {strange[0]!r} that {file} does not name; add it there, or move it away")
    return names
