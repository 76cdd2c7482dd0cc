"""Image sizes and orientations read from headers, and compared with what labels are of.

Labels are of the picture upright, as viewers and labelling tools show it. A photo that EXIF turns is taken where sizes
confirm that its labels are so: one that lies on its side (5 to 8), and is not square. Of others, whose labels may as
well be of the stored pixels, nobody can tell: they are refused.

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
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap height and width

Size = tuple[int, int]  # (height, width)


def check_sizes(wanted: Sequence[tuple[Path, Size]]) -> None:
    """Raise DataError if images, upright, have other sizes than is said, or no size can tell how their labels lie.

    Those that cannot be read are passed over.

    Costs about 0.1 ms an image.
    """
    images._silence_pillow()
    parts = [wanted[start : start + _TOGETHER] for start in range(0, len(wanted), _TOGETHER)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="datafree-sizes") as threads:
        others = [pair for found in threads.map(_others, parts) for pair in found]
    for file, size in others:
        try:  # the word is the whole file's: a PNG may say behind its pixels that they lie on their side
            image, orientation = images.read_turned(file)
        except UnreadableImage:
            continue
        check_told(file, orientation, (image.height, image.width))
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
    """Those whose header says another size, or an orientation that a size does not tell."""
    return [pair for pair in wanted if (found := _header(pair[0])) and (found[0] != pair[1] or not _is_told(*found))]


def check_masks(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Raise DataError if EXIF turns an image in a way that its mask's size cannot tell; 0.1 ms an image.

    A mask that has the same orientation is turned as its image is.
    """
    images._silence_pillow()
    parts = [pairs[start : start + _TOGETHER] for start in range(0, len(pairs), _TOGETHER)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="datafree-sizes") as threads:
        for file, orientation, size in (found for part in threads.map(_untold, parts) for found in part):
            check_told(file, orientation, size)


def check_told(file: Path, orientation: int, size: Size) -> None:
    """Raise DataError for an image whose labels may lie upright or as it is stored."""
    if not _is_told(size, orientation):
        raise DataError(
            f"the image {file} is turned by its EXIF orientation {orientation}, and its size does not tell whether its "
            "labels are of the picture upright or as stored; turn the pixels themselves if upright (mogrify "
            "-auto-orient), remove the tag if as stored (exiftool -Orientation=)"
        )


def _is_told(size: Size, orientation: int) -> bool:
    return orientation == 1 or (orientation in _ON_ITS_SIDE and size[0] != size[1])


def _untold(pairs: Sequence[tuple[Path, Path]]) -> list[tuple[Path, int, Size]]:
    found = []
    for image, mask in pairs:
        if (header := _header(image)) and not _is_told(*header) and (_header(mask) or header)[1] != header[1]:
            found.append((image, header[1], header[0]))
    return found


def _header(file: Path) -> tuple[Size, int] | None:
    """The size of the image, upright, and its orientation, by its header; None where that cannot be read."""
    try:
        with file.open("rb") as content, Image.open(content, formats=images._FORMATS) as image:
            # Not the format's own getexif: a PNG's would decode the image.
            orientation = Image.Image.getexif(image).get(images._ORIENTATION, 1)
            size = (image.width, image.height) if orientation in _ON_ITS_SIDE else (image.height, image.width)
            return size, orientation if orientation in range(1, 9) else 1
    except Exception:  # as manifold as in reading; why is said by whoever reads it
        return None
