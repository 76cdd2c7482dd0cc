"""Reading image files: find them, decode them as RGB, resize and crop. Files are not trusted.

H x W pixels; sizes are (height, width), as everywhere in this package, but Pillow's own are (width, height).
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from datafree.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
MAX_PIXELS = 89_478_485  # a larger image is refused undecoded: a quarter GiB of RGB, where Pillow warns

# What is in the file decides, not its suffix; other formats stay closed (Pillow hands EPS to Ghostscript).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_LONGEST = 16  # times its window: a longer strip is cut to its middle before it is scaled
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _ORIENTATION = 258, 339, 274  # TIFF and EXIF tags

_ORIENTATIONS = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(DataError):
    """An image file that cannot be read: `path`, and `reason` in a few words."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"cannot read the image {path}: {reason}; mend or remove it")


def list_images(folder: Path, *, may_be_empty: bool = False) -> list[Path]:
    """Every image below `folder` by its suffix, sorted. Hidden names are left out.

    Links are followed, each real directory once. A link to nothing is listed: reading it says what is wrong.
    Raises DataError if the folder is missing, is a file, cannot be listed, or holds no images where it may not.
    """
    if not folder.exists():
        raise DataError(f"the folder {folder} does not exist; check its path")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, not a folder; give the folder that holds the images")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        directory = waiting.pop()
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as entries:
                names = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise DataError(f"cannot list {directory}: {error.strerror}; make it readable") from error
        for entry in names:
            if _is_directory(entry):
                waiting.append(Path(entry.path))
            elif entry.name.lower().endswith(SUFFIXES) and (entry.is_symlink() or entry.is_file()):
                found.append(Path(entry.path))
    if not found and not may_be_empty:
        raise DataError(f"the folder {folder} holds no images ({', '.join(SUFFIXES)}); give one that does")
    return sorted(found)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def read_image(path: Path) -> Image.Image:
    """The image at `path` as 8-bit RGB, upright (EXIF), the first frame if there are several.

    Alpha is composited over black. Grey of more than 8 bits is scaled to 8 (Pillow's conversion clips it).
    Colour profiles are ignored. Raises UnreadableImage and nothing else.
    """
    return read_turned(path)[0]


def read_turned(path: Path) -> tuple[Image.Image, int]:
    """`read_image`, and the EXIF orientation it was turned upright from; 1 if it was not. Raises UnreadableImage."""
    return _read_turned(path, _to_rgb)


def read_stored(path: Path) -> tuple[Image.Image, int]:
    """`read_turned` in the mode that the image is stored in (for masks). Raises UnreadableImage only."""
    return _read_turned(path, lambda image: image)


def _read_turned(path: Path, convert: Callable[[Image.Image], Image.Image]) -> tuple[Image.Image, int]:
    _silence_pillow()
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise UnreadableImage(path, "not a file" if path.exists() else "no such file")
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:  # known from the header; nothing is decoded yet
                size = f"{image.width} x {image.height}"
                raise UnreadableImage(path, f"{size} pixels, more than {MAX_PIXELS} in all")
            turned = _turned_by_pillow(image)
            image.load()
            orientation = _orientation(image)
            turn = _ORIENTATIONS.get(orientation)
            upright = convert(image)
            if turn is None:
                return upright.copy(), turned  # a copy: free of the file
            return upright.transpose(turn), orientation
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders meet damaged bytes with nearly every error there is
        raise UnreadableImage(path, _reason(path, error)) from error


def _reason(path: Path, error: Exception) -> str:
    """A few words for people, on one line."""
    if isinstance(error, UnidentifiedImageError):
        try:
            return "not an image of a known kind" if path.stat().st_size else "the file is empty"
        except OSError:
            return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS} pixels"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "damaged: " + " ".join((str(error) or type(error).__name__).split())[:100]


def _silence_pillow() -> None:
    """Let no warning of Pillow's out: what matters is raised here as an error.

    The filter stays, because `warnings.catch_warnings` swaps a list that all threads share: decoding threads
    would put stale filters back under the training thread's feet. It is renewed after others reset the list, or put
    filters before it.
    """
    quiet = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if not warnings.filters or warnings.filters[0] != quiet:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF does not spoil the pixels
        return 1


def _turned_by_pillow(image: Image.Image) -> int:
    """The orientation that Pillow itself turns an image upright from in loading it: TIFF's; else 1."""
    try:
        said = int(getattr(image, "tag_v2", {}).get(_ORIENTATION, 1))
    except (TypeError, ValueError):
        return 1
    return said if said in _ORIENTATIONS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _to_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    """16- or 32-bit grey as 8-bit: v * 255 / white, rounded, where white comes from the file's bits.

    Few files use all of 32 bits or say where a float is white. There, white is the least of the usual ones (1
    for floats, 255, 65535, the type's largest) that no pixel exceeds.
    """
    tags = getattr(image, "tag_v2", {})  # TIFF; PNG and PPM come as full 16 bits
    bits, signed = int(tags.get(_BITS_PER_SAMPLE, (16,))[0]), tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    stored = np.asarray(image)
    if image.mode == "I" and bits == 32 and not signed:
        stored = stored.view(np.uint32)  # Pillow reads the upper half of unsigned values as negative
    values = np.nan_to_num(stored.astype(np.float32), nan=0.0, posinf=None, neginf=0.0)  # (H, W)
    brightest = float(values.max())
    if image.mode == "F":
        whites = [1.0, 255.0, 65535.0, brightest]
    elif bits == 32:
        whites = [255.0, 65535.0, float(2**31 - 1 if signed else 2**32 - 1)]
    else:
        whites = [float(2 ** (bits - signed) - 1)]
    white = next((w for w in whites if brightest <= w), whites[-1])
    return Image.fromarray((values.clip(0, white) * np.float32(255 / white)).round().astype(np.uint8))


def cover(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """`image` scaled until it just covers `size` (height, width), its shape kept; antialiased in shrinking.

    An image that already just covers `size` is returned as it is. A strip more than 16 times longer than its
    window is cut to its middle first, so that memory stays bounded.
    """
    height, width = size
    scale = max(height / image.height, width / image.width)
    kept_h = min(image.height, math.ceil(_LONGEST * height / scale))
    kept_w = min(image.width, math.ceil(_LONGEST * width / scale))
    kept_h += (image.height - kept_h) % 2  # an even rest, so that the middle stays in the middle
    kept_w += (image.width - kept_w) % 2
    if (kept_w, kept_h) != image.size:
        image = centre_crop(image, (kept_h, kept_w))
    scaled_h = max(height, round(image.height * scale))
    scaled_w = max(width, round(image.width * scale))
    if (scaled_w, scaled_h) == image.size:
        return image
    return image.resize((scaled_w, scaled_h), resample)


def centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of `image`, `size` (height, width); an odd margin is smaller at the top and the left."""
    top, left = (image.height - size[0]) // 2, (image.width - size[1]) // 2
    return image.crop((left, top, left + size[1], top + size[0]))


def fit(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """`image` scaled until it just covers `size` (height, width) and cropped to its middle, as DeGAN does.

    480 x 360 becomes 171 x 128 and then 128 x 128. Take `Image.Resampling.NEAREST` for masks of class ids.
    """
    return centre_crop(cover(image, size, resample), size)


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1]; `to_image` gives the same pixels back."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3), a copy: Pillow's is read-only
    return pixels.permute(2, 0, 1).contiguous().float() / 255


def to_image(tensor: Tensor) -> Image.Image:
    """A picture of (3, H, W) values in [0, 1], rounded to 8 bits; others are clamped, NaN is black."""
    pixels = tensor.detach().float().nan_to_num(nan=0.0).clamp(0, 1).mul(255).round()
    return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
