"""Image sizes read from headers and compared with those that annotations state.

H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from datafree.data import images
from datafree.data.images import UnreadableImage
from datafree.errors import DataError

_THREADS = 8  # for disks on which each file is waited for; on others one is as fast
_TOGETHER = 16  # files that a thread takes at once

Size = tuple[int, int]  # (height, width)


def check_sizes(wanted: Sequence[tuple[Path, Size]]) -> None:
    """Raise DataError if images, upright, have other sizes than is said; those that cannot be read are passed over.

    Costs about 0.1 ms an image.
    """
    images._silence_pillow()
    parts = [wanted[start : start + _TOGETHER] for start in range(0, len(wanted), _TOGETHER)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="datafree-sizes") as threads:
        others = [pair for found in threads.map(_others, parts) for pair in found]
    for file, size in others:
        try:  # the word is the whole file's: a PNG may say behind its pixels that they lie on their side
            image = images.read_image(file)
        except UnreadableImage:
            continue
        if (image.height, image.width) != size:
            more = f" (by their headers, {len(others) - 1} others differ, too)" if len(others) > 1 else ""
            raise other_size(file, (image.height, image.width), size, more)


def other_size(file: Path, found: Size, wanted: Size, more: str = "") -> DataError:
    """The error for an image of another size than its labels."""
    return DataError(
        f"the image {file} has {found[1]} x {found[0]} pixels, but its boxes are of one of {wanted[1]} x {wanted[0]}"
        f"{more}; make them equal"
    )


def _others(wanted: Sequence[tuple[Path, Size]]) -> list[tuple[Path, Size]]:
    """Those whose header says another size."""
    return [(file, size) for file, size in wanted if (_size(file) or size) != size]


def _size(file: Path) -> Size | None:
    """The size of the image, upright, by its header; None where that cannot be read."""
    try:
        with file.open("rb") as content, Image.open(content, formats=images._FORMATS) as image:
            # Not the format's own getexif: a PNG's would decode the image.
            turned = Image.Image.getexif(image).get(images._ORIENTATION, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # as manifold as in reading; why is said by whoever reads it
        return None
