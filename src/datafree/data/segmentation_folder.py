"""Labelled images for segmentation, as a folder of images and a folder of masks.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datafree.data import images
from datafree.data.image_sizes import check_masks, check_told
from datafree.data.images import UnreadableImage
from datafree.data.labelled import NothingToScore, names_file, read_names, stream
from datafree.errors import DataError
from datafree.text import show

_LAYOUT = "images/NAME.png (or another kind) and masks/NAME.png"


class MaskFolder:
    """Images and their masks of class ids: `images/NAME.ext`, `masks/NAME.png`, perhaps `classes.txt`.

    A mask is a single-channel or palette PNG of the image's size whose pixel values are class ids, 0 to
    num_classes - 1, or `ignore_index`. `classes.txt`, in the folder or its parent, names one class a line;
    where ignore_index equals num_classes (as in CamVid) it may name that too. Images and masks are scaled and
    cropped by `images.fit`, masks to the nearest pixel; both are upright (`image_sizes`). Before images are asked for,
    only names and headers are read, and masks until two classes are seen.

    Raises DataError if files are missing or do not match; reading raises it for masks of other things.
    """

    skipped: list[str]  # "images/NAME.ext: reason" of each pair that could not be read; grows while batches are read
    class_names: list[str]  # num_classes names

    def __init__(self, path: Path, *, image_size: tuple[int, int], num_classes: int, ignore_index: int) -> None:
        self.image_size = image_size  # (height, width), pixels
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.skipped = []
        self._path = path
        self._pairs = _pairs(path)
        self.class_names = _class_names(path, num_classes, ignore_index)
        check_masks(self._pairs)
        self._look_for_two_classes()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) float32 in [0, 1], its mask (H, W) int64. Raises UnreadableImage, DataError."""
        image_path, mask_path = self._pairs[index]
        image, orientation = images.read_turned(image_path)
        ids, masks_own = self._read_ids(mask_path)
        if orientation != masks_own:
            if masks_own != 1:
                raise DataError(
                    f"the mask {mask_path} has the EXIF orientation {masks_own}, but its image {orientation}; "
                    "give both the same, or turn the pixels themselves (mogrify -auto-orient)"
                )
            check_told(image_path, orientation, (image.height, image.width))
        if ids.shape != (image.height, image.width):
            raise DataError(
                f"the mask {mask_path} has {ids.shape[1]} x {ids.shape[0]} pixels, but its image "
                f"{image_path.name} has {image.width} x {image.height}; make them equal"
            )
        fitted = images.fit(Image.fromarray(ids), self.image_size, Image.Resampling.NEAREST)
        mask = torch.from_numpy(np.array(fitted)).long()  # (H, W)
        return images.to_tensor(images.fit(image, self.image_size)), mask

    def files(self, index: int) -> tuple[Path, ...]:
        return self._pairs[index]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, H, W) float32 in [0, 1] and masks (B, H, W) int64, in the order of their names.

        The last batch may be smaller. Unreadable files are skipped and recorded; raises DataError if all are.
        """
        return stream(self.__getitem__, len(self), batch_size, self.skipped, self._path)

    def _look_for_two_classes(self) -> None:
        """Raise NothingToScore if all masks show one class and ignored pixels; the first masks mostly tell.

        Such are masks of 0 and 255 by the default `ignore_index`: the object is swallowed, and whoever never sees it
        scores best.
        """
        if self.num_classes - (self.ignore_index in range(self.num_classes)) < 2:  # one class was asked for
            return
        seen: set[int] = set()
        for _, mask in self._pairs:
            try:
                seen |= set(np.unique(self._read_ids(mask)[0]).tolist())
            except UnreadableImage:
                continue
            if len(seen - {self.ignore_index}) > 1:
                return
        classes = seen - {self.ignore_index}
        if self.ignore_index in seen and len(classes) == 1:
            raise NothingToScore(f"{self._path}: {one_class(self.class_names[classes.pop()], self.ignore_index)}", self)

    def _read_ids(self, path: Path) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int32]], int]:
        """(H, W) class ids, checked, upright; and the EXIF orientation they were turned from."""
        image, orientation = images.read_stored(path)
        step = _grey_step(path)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise DataError(
                f"the mask {path} is a colour picture ({image.mode}), not class ids; "
                "save one class id per pixel, as a greyscale or palette PNG"
            )
        ids = np.asarray(image).astype(np.int32) // step
        wrong = (ids < 0) | ((ids >= self.num_classes) & (ids != self.ignore_index))
        if wrong.any():
            raise DataError(
                f"the mask {path} holds the value {int(ids[wrong][0])}; allowed are 0 to "
                f"{self.num_classes - 1} and {self.ignore_index} (ignore_index); mend it, or set "
                "task.num_classes or task.ignore_index"
            )
        return ids, orientation


def one_class(name: str, ignore_index: int) -> str:
    """What is said of masks in which an ignored id is all there is besides one class."""
    return (
        f"the masks show {show(name)} and the ignored id {ignore_index}, nothing else: there is nothing to tell "
        f"apart; if {ignore_index} is a class in them, write its class id there (0 and 255 become 0 and 1), or set "
        "task.ignore_index to an id that they do not hold"
    )


def _grey_step(path: Path) -> int:
    """What Pillow has multiplied the values of a 2- or 4-bit grey PNG by (85 or 17), else 1.

    Raises DataError for a JPEG that is only called .png, which looks like a mask and is none.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)  # signature (8), chunk head (8), width, height (8), bit depth, colour type
    except OSError as error:
        raise UnreadableImage(path, "no such file") from error
    if header.startswith(b"\xff\xd8\xff"):
        raise DataError(
            f"the mask {path} is a JPEG, whatever its name says: JPEG changes class ids, and they do not come back; "
            "export the mask again, as PNG"
        )
    is_grey_png = len(header) == 26 and header.startswith(b"\x89PNG") and header[25] == 0
    return {2: 85, 4: 17}.get(header[24], 1) if is_grey_png else 1


def _pairs(path: Path) -> list[tuple[Path, Path]]:
    """Each image with its mask, in the order of their names."""
    for folder in (path, path / "images", path / "masks"):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; labelled images are expected in {path} as {_LAYOUT}")
    image_paths = _by_name(path / "images", images.list_images(path / "images"))
    mask_paths = _by_name(path / "masks", [p for p in images.list_images(path / "masks") if p.suffix.lower() == ".png"])
    if not mask_paths:
        raise DataError(f"{path / 'masks'} holds no .png masks; save masks as PNG (other kinds change class ids)")
    for have, lack, what, other in (
        (image_paths, mask_paths, "image", "mask"),
        (mask_paths, image_paths, "mask", "image"),
    ):
        alone = sorted(have.keys() - lack.keys())
        if alone:
            raise DataError(
                f"{len(alone)} of {len(have)} {what}s in {path} have no {other}, "
                f"the first {have[alone[0]].name}; the expected layout is {_LAYOUT}"
            )
    return [(image_paths[name], mask_paths[name]) for name in sorted(image_paths)]


def _by_name(folder: Path, paths: list[Path]) -> dict[str, Path]:
    """Files by their path below `folder` without its suffix."""
    named: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise DataError(f"{named[name]} and {path} have the same name {name}; rename or remove one")
        named[name] = path
    return named


def _class_names(path: Path, num_classes: int, ignore_index: int) -> list[str]:
    """The names in classes.txt, without that of `ignore_index`; "class 0" and so on without such a file."""
    found = names_file(path)
    if found is None:
        return [f"class {index}" for index in range(num_classes)]
    names = read_names(found)
    if len(names) == num_classes + 1 and ignore_index == num_classes:
        names.pop()  # ids 0 to C - 1 keep their lines only if the extra line is the last
    if len(names) != num_classes:
        raise DataError(
            f"{found} names {len(names)} classes, but the task has num_classes {num_classes} and "
            f"ignore_index {ignore_index}; name {num_classes}, "
            f"or {num_classes + 1} with ignore_index {num_classes}"
        )
    return names
