"""What preprocessor_config.json does to images, as mean and std of images in [0, 1].

An image processor takes x * 255 from here, multiplies it by rescale_factor, and takes off mean and divides by std.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from datafree.errors import NetworkError
from datafree.networks.first_input import Order, Three
from datafree.networks.huggingface.directory import ModelDirectory, read_json
from datafree.text import show

_ORIGIN = "preprocessor_config.json"
# Kinds of processors whose code does otherwise than the others' with the same options.
_NEVER_NORMALISES = "MobileViT"  # it writes a mean and std all the same
_ALWAYS_FLIPS = "PPLCNet"
_CROPS_FIRST = "Perceiver"


@dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """Of images in [0, 1]."""

    mean: Three
    std: Three
    channel_order: Order
    size: tuple[int, int] | None  # (height, width), pixels; None: any
    origin: str  # the file


def read_preprocessor(directory: ModelDirectory) -> Preprocessor | None:
    """What the directory says of its images; None where it says nothing. Raises NetworkError for what is no number."""
    if directory.timm_name is not None:
        return _timm(directory)
    given = read_json(directory.path / _ORIGIN)
    origin = _ORIGIN
    if given is None:  # newer releases write it into the processor's
        whole = read_json(directory.path / "processor_config.json") or {}
        given, origin = whole.get("image_processor"), "processor_config.json"
    if not isinstance(given, dict):
        return None
    mean, std = _normalised(given)
    flipped = given.get("do_flip_channel_order") is True or _is(given, _ALWAYS_FLIPS)
    return Preprocessor(mean=mean, std=std, channel_order="bgr" if flipped else "rgb", size=_size(given), origin=origin)


def _is(given: dict[str, Any], kind: str) -> bool:
    """Whether a processor is of this kind, by its class."""
    return str(given.get("image_processor_type") or given.get("feature_extractor_type")).startswith(kind)


def _timm(directory: ModelDirectory) -> Preprocessor | None:
    held = directory.config.get("pretrained_cfg")
    given = {**directory.config, **(held if isinstance(held, dict) else {})}
    mean, std, size = given.get("mean"), given.get("std"), given.get("input_size")
    if mean is None or std is None:
        return None
    fits = isinstance(size, list) and len(size) == 3 and all(isinstance(side, int) for side in size)
    return Preprocessor(
        mean=_three("mean", mean),
        std=_three("std", std),
        channel_order="rgb",
        size=(size[1], size[2]) if fits and size is not None else None,
        origin="config.json",
    )


def _normalised(given: dict[str, Any]) -> tuple[Three, Three]:
    """m, s with (x - m) / s = what the processor makes of 255 x, x in [0, 1]."""
    factor = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or not factor > 0:
        raise NetworkError(f"{_ORIGIN}: rescale_factor is {show(factor)}; a number above 0 is needed")
    offset = 1.0 if given.get("rescale_offset") and given.get("do_rescale", True) else 0.0
    mean: Three = (0.0, 0.0, 0.0)
    std: Three = (1.0, 1.0, 1.0)
    normalised = given.get("do_normalize", not _is(given, _NEVER_NORMALISES))
    if normalised and "image_mean" in given and "image_std" in given:
        mean, std = _three("image_mean", given["image_mean"]), _three("image_std", given["image_std"])
    scale = 255 * factor  # (255 f x - o - mean) / std
    # EfficientNet's processor divides by std once more in front of a classifier ("include_top").
    twice = std if given.get("include_top") is True else (1.0, 1.0, 1.0)
    middle = (mean[0] + offset) / scale, (mean[1] + offset) / scale, (mean[2] + offset) / scale
    return middle, (std[0] * twice[0] / scale, std[1] * twice[1] / scale, std[2] * twice[2] / scale)


def _three(name: str, given: Any) -> Three:
    values = given if isinstance(given, list) else [given] * 3
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise NetworkError(f"{_ORIGIN}: {name} is {show(given)}; three numbers are needed, for R, G and B")
    return float(values[0]), float(values[1]), float(values[2])


def _size(given: dict[str, Any]) -> tuple[int, int] | None:
    """What reaches the network: the crop, or the size that images are brought to; None where a side is free."""
    crop = given.get("do_center_crop") and given.get("crop_size")
    if not crop and not given.get("do_resize", True):
        return None
    size = given.get("size") if _is(given, _CROPS_FIRST) or not crop else crop
    if "max_size" in given:  # older releases' word for the longest edge
        return None
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size)
    if not isinstance(size, dict):
        return None
    height, width = size.get("height"), size.get("width")
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    edge = size.get("shortest_edge")
    if isinstance(edge, int) and not isinstance(edge, bool) and "longest_edge" not in size:
        return edge, edge  # crops to it, as ConvNeXt's does
    return None
