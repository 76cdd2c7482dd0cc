"""Photos that nobody has labelled, read one after the other: those that cannot be read are skipped and named.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from datafree.data.images import UnreadableImage, fit, read_image, to_tensor
from datafree.errors import DataError

_NAMED = 5  # files that a line names


def read_fitted(files: Sequence[Path], size: tuple[int, int], skipped: list[str], folder: Path) -> Iterator[Tensor]:
    """Images (3, H, W) in [0, 1], each scaled to cover `size` (height, width) and cut to its middle.

    A file that cannot be read is left out and added to `skipped`, as a path below `folder`, with its reason. Raises
    DataError if none can be read.
    """
    any_read = False
    for file in files:
        try:
            yield to_tensor(fit(read_image(file), size))
        except UnreadableImage as error:
            skipped.append(f"{file.relative_to(folder).as_posix()} ({error.reason})")
            continue
        any_read = True
    if not any_read:
        raise DataError(f"none of the {len(files)} images of {folder} can be read, the first: {skipped[0]}")


def in_batches(images: Iterator[Tensor], batch_size: int) -> Iterator[Tensor]:
    """(B, 3, H, W); the last may have fewer images."""
    while batch := list(islice(images, batch_size)):
        yield torch.stack(batch)


def unread(skipped: Sequence[str]) -> str:
    """A line about what was left out."""
    return f"{len(skipped):,} images cannot be read and were left out: {_first(skipped, ', ')}"


def unscored(skipped: Sequence[str]) -> str:
    """A line about what of labelled data was not scored: what `LabelledData.skipped` holds, once each."""
    return f"not scored: {_first(list(dict.fromkeys(skipped)), '; ')}"


def _first(items: Sequence[str], between: str) -> str:
    """The first few, and how many more there are: a line stays a line however many files are damaged."""
    return between.join(items[:_NAMED]) + (f" and {len(items) - _NAMED:,} more" if len(items) > _NAMED else "")
