"""The interface of labelled data sets, and what they share: class names, batches that stream."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from datafree.data.images import UnreadableImage
from datafree.errors import DataError
from datafree.text import is_unicode, show


def stream(
    read: Callable[[int], tuple[Tensor, Tensor]], count: int, batch_size: int, skipped: list[str], folder: Path
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs (image, target) that `read(0 .. count - 1)` gives, stacked; the last batch may be smaller.

    Files that cannot be read are left out and added to `skipped`, as paths below `folder`; raises DataError if all are.
    """
    assert batch_size > 0
    pairs: list[tuple[Tensor, Tensor]] = []
    any_read, known = False, set(skipped)
    for index in range(count):
        try:
            pairs.append(read(index))
        except UnreadableImage as error:
            line = f"{error.path.relative_to(folder)}: {error.reason}"
            if line not in known:  # of an earlier pass
                known.add(line)
                skipped.append(line)
            continue
        any_read = True
        if len(pairs) == batch_size:
            yield _stack(pairs)
            pairs = []
    if pairs:
        yield _stack(pairs)
    if not any_read:
        raise DataError(f"none of the {count} labelled images can be read; the first: {skipped[0]}")


def _stack(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in pairs]), torch.stack([target for _, target in pairs])


def save_image(image: Image.Image, file: Path) -> None:
    """Write an image file, as a PNG where that is its suffix; folders above it are made. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def place_below(folder: Path, name: str) -> Path:
    """`folder`/`name`; folders between the two are made, but not `folder` itself. Raises OSError."""
    *between, last = PurePosixPath(name).parts
    for part in between:
        folder = folder / part
        folder.mkdir(exist_ok=True)
    return folder / last


def names_file(folder: Path) -> Path | None:
    """`classes.txt` of a labelled folder: in it, or one folder up."""
    return next((p for p in (folder / "classes.txt", folder.parent / "classes.txt") if p.is_file()), None)


def read_names(file: Path) -> list[str]:
    """The names in a classes.txt, one a line. Raises DataError, also for a name given twice (as `composed`)."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file} ({error}); save it as UTF-8 text, one class name a line") from error
    names = [line for line in lines if line]
    alike = [composed(name) for name in names]
    if len(set(alike)) != len(names):
        twice = next(name for name in alike if alike.count(name) > 1)
        raise DataError(f"{file} names the class {twice!r} twice; give each class its own name")
    return names


def composed(name: str) -> str:
    """A name as it is compared: in Unicode's composed form (NFC), since some file systems decompose accents."""
    return unicodedata.normalize("NFC", name)


def names_text(names: list[str]) -> str:
    """The classes.txt of which `read_names` makes `names`. Raises DataError for a name that does not fit on a line."""
    for name in names:
        if [name] != name.strip().splitlines() or not is_unicode(name):
            raise DataError(f"the class name {show(name)} is no line of a classes.txt; rename it, or leave `data` out")
    return "".join(f"{name}\n" for name in names)


class LabelledData(Protocol):
    """Labelled images for scoring; streams, never loads a folder whole."""

    class_names: list[str]  # C names
    skipped: list[str]  # images that could not be read, each with its reason; grows while batches are read

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, H, W) float32 in [0, 1] and their targets."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image (3, H, W) float32 in [0, 1] and its target, in any order. Raises UnreadableImage."""
        ...


@runtime_checkable
class NamesFiles(Protocol):
    """Labelled data that knows which files an image and its target are read from."""

    def files(self, index: int) -> Sequence[Path]:
        """The image's file first."""
        ...


@runtime_checkable
class Remarked(Protocol):
    """Labelled data of which a user should know something before taking scores on it at their word."""

    remarks: list[str]


class NothingToScore(DataError):
    """Data that is sound, but in which nothing is labelled. `data` is it, opened, for who wants its images."""

    def __init__(self, text: str, data: LabelledData) -> None:
        self.data = data
        super().__init__(text)
