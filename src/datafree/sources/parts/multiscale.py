"""Crops of every scale out of one photograph, turned, sheared and recoloured: a data set from a single image.

Asano and Saeed, "Extrapolating from a Single Image to a Thousand Classes using Distillation", ICLR 2023, arXiv
2112.00725.

H x W pixels. All numbers are drawn from the generator that is given, so that a crop is a function of its seed.
"""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

Pixels = NDArray[np.uint8]  # (H, W, 3)

AREA = (0.002, 1.0)  # of the patch, least and most
ASPECT = (3 / 4, 4 / 3)  # width over height of the crop, logarithms even
DEGREES = 30.0  # of rotation and of shear, at most, each way
JITTER = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation: factors 1 - j to 1 + j; hue: turns, each way
JITTERED = 0.5  # probability
_REDUCED = 3.0  # a crop is first halved by means while it is so many times too large


def multiscale(photo: Pixels, size: tuple[int, int], draw: random.Random) -> Pixels:
    """A crop (H, W, 3) of a photograph, both of any size.

    A square patch of half the shorter side, anywhere; of it a part, scaled to `size` times sqrt 2; turned and sheared;
    mirrored at even odds; its middle, `size`; then, at even odds, other colours.
    """
    height, width = size
    large = (math.ceil(height * math.sqrt(2)), math.ceil(width * math.sqrt(2)))
    scaled = _part(_patch(photo, draw), large, draw)
    moved = _moved(scaled, draw)
    if draw.random() < 0.5:
        moved = moved.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left = (moved.height - height) // 2, (moved.width - width) // 2
    middle = moved.crop((left, top, left + width, top + height))
    return np.array(_recoloured(middle, draw) if draw.random() < JITTERED else middle)


def _patch(photo: Pixels, draw: random.Random) -> Pixels:
    side = max(1, min(photo.shape[:2]) // 2)
    top, left = (int(draw.random() * (length - side + 1)) for length in photo.shape[:2])
    return photo[top : top + side, left : left + side]


def _part(patch: Pixels, size: tuple[int, int], draw: random.Random) -> Image.Image:
    """A part of a square patch, AREA of it, scaled to `size`; one that is too long is cut to the patch."""
    side = len(patch)
    area = draw.uniform(*AREA) * side**2
    aspect = math.exp(draw.uniform(*map(math.log, ASPECT)))
    width, height = (min(side, max(1, round(math.sqrt(area * a)))) for a in (aspect, 1 / aspect))
    left, top = (int(draw.random() * (side - length + 1)) for length in (width, height))
    crop = Image.fromarray(np.ascontiguousarray(patch[top : top + height, left : left + width]))
    return crop.resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=_REDUCED)


def _moved(image: Image.Image, draw: random.Random) -> Image.Image:
    """The image turned and sheared about its middle. What comes in is its mirror image; black in the published code."""
    turn, shear = (math.radians(draw.uniform(-DEGREES, DEGREES)) for _ in range(2))
    pixels = np.asarray(image)
    down, right = (max(1, length // 2) for length in pixels.shape[:2])
    wide = Image.fromarray(np.pad(pixels, ((down, down), (right, right), (0, 0)), mode="symmetric"))
    # Output place p shows input place A p; A is the inverse of a turn after a shear along x.
    a, b = math.cos(turn), math.sin(turn)
    matrix = (a + b * math.tan(shear), b - a * math.tan(shear), -b, a)
    x, y = wide.width / 2, wide.height / 2
    ox, oy = image.width / 2, image.height / 2
    offset_x, offset_y = x - matrix[0] * ox - matrix[1] * oy, y - matrix[2] * ox - matrix[3] * oy
    data = (matrix[0], matrix[1], offset_x, matrix[2], matrix[3], offset_y)
    return wide.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)


def _recoloured(image: Image.Image, draw: random.Random) -> Image.Image:
    """Brightness, contrast, saturation and hue changed, in this order (published: in any)."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind, most in zip(kinds, JITTER, strict=False):
        image = kind(image).enhance(draw.uniform(1 - most, 1 + most))
    hue, saturation, value = image.convert("HSV").split()
    turn = round(draw.uniform(-JITTER[3], JITTER[3]) * 256)
    turned = Image.fromarray(np.asarray(hue) + np.uint8(turn % 256))  # a byte goes round as a hue does
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
