"""Values of options as a user writes them: sizes, three numbers, KEY=VALUE, files.

They are read without torch, so that a slip is said at once.

H x W pixels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datafree.config import paths, yaml
from datafree.config.duration import seconds_of
from datafree.errors import DatafreeError, NetworkError, RecipeError, WeightsError
from datafree.text import did_you_mean, show

Three = tuple[float, float, float]  # R, G, B
_ORDERS = ("rgb", "bgr")
# Keys of TASKS and SOURCES, which bring torch with them.
KINDS = ("classification", "detection", "multilabel", "segmentation")
METHODS = (
    *("auto", "cgdd", "cmi", "dafl", "dataset", "degan", "dfad", "diode", "fast", "folder", "inversion", "mixed"),
    *("noise", "procedural", "zskt"),
)


@dataclass(frozen=True, kw_only=True)
class StatedImages:
    """What a user has said of the images a network wants; None where nothing."""

    channels: Literal[1, 3] | None = None
    mean: Three | None = None
    std: Three | None = None
    channel_order: Literal["rgb", "bgr"] | None = None

    @classmethod
    def parse(
        cls, channels: int | None, mean: str | None, std: str | None, channel_order: str | None = None
    ) -> StatedImages:
        """From what options say. Raises NetworkError."""
        if channels not in (None, 1, 3):
            raise NetworkError(f"--channels is {channels}: give 3 for colour images, 1 for grey ones")
        if channel_order not in (None, *_ORDERS):
            raise NetworkError(f"--channel-order is {show(channel_order)}: give rgb or bgr")
        made: Literal[1, 3] | None = None if channels is None else 1 if channels == 1 else 3
        order: Literal["rgb", "bgr"] | None = (
            None if channel_order is None else "bgr" if channel_order == "bgr" else "rgb"
        )
        return cls(channels=made, mean=three("--mean", mean), std=three("--std", std), channel_order=order)


def three(option: str, text: str | None) -> Three | None:
    """R, G and B of "0.485,0.456,0.406", or of one number for all three. Raises NetworkError."""
    if text is None:
        return None
    try:
        found = [float(part) for part in text.strip(" []()").split(",")]
        red, green, blue = found * 3 if len(found) == 1 else found
    except ValueError as error:
        raise NetworkError(
            f"{option} {show(text)} is not three numbers; write R,G,B of images in [0, 1], 0.485,0.456,0.406"
        ) from error
    if not all(map(math.isfinite, (red, green, blue))):
        raise NetworkError(f"{option} {show(text)} has a number that is not finite")
    if option == "--mean" and max(red, green, blue) > 1:
        scaled = ",".join(f"{value / 255:.3f}" for value in (red, green, blue))
        raise NetworkError(
            f"--mean {text} is of pixels from 0 to 255, and images here are in [0, 1]: divide it and --std by 255 "
            f"(--mean {scaled}), or set pixel_range: 255 in a recipe"
        )
    if option == "--std" and min(red, green, blue) <= 0:
        raise NetworkError(f"--std {show(text)}: a standard deviation is above 0; --std 1 where nothing is divided")
    return red, green, blue


def pixels(stated: str) -> tuple[int, int]:
    """Height and width of "224x320", or of one number for both. Raises NetworkError."""
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", stated.strip(), re.ASCII)
    if match is None or 0 in (pair := (int(match[1]), int(match[2] or match[1]))):
        raise NetworkError(f"--size {show(stated)} is not a size in pixels; write it as HEIGHTxWIDTH, 224x320")
    return pair


def argument(text: str) -> tuple[str, Any]:
    """Key and value of "key=value" of a network's constructor. Raises NetworkError."""
    key, _, value = text.partition("=")
    if not key.isidentifier() or not value:
        raise NetworkError(f"--args {show(text)} is not of the form KEY=VALUE (encoder=resnet50)")
    try:
        return key, yaml.parse(value, f"--args {key}")
    except ValueError as error:
        raise NetworkError(str(error).partition("\n")[0]) from error


def require_classes(count: int | None) -> None:
    """Raise NetworkError for a number of classes that is none."""
    if count is not None and (type(count) is not int or count < 1):  # a call from Python may give anything
        raise NetworkError(f"--classes is {show(count)}: give a number of at least 1")


def require_time(text: str | None, option: str = "--time") -> None:
    """Raise RecipeError for what is no time."""
    if text is not None and seconds_of(text) is None:
        raise RecipeError([f"{option} {show(text)} is not a time; write it as 90s, 30m or 1h30m"])


def require_seed(seed: int | None) -> None:
    """Raise RecipeError for a seed that no generator takes."""
    if seed is not None and (type(seed) is not int or seed < 0):
        raise RecipeError([f"--seed is {show(seed)}: give 0 or more"])


def require_kind(kind: str | None) -> None:
    """Raise NetworkError for a task that is none; a user's own, "package.module:Class", is found out later."""
    if kind is not None and kind not in KINDS and ":" not in kind:
        raise NetworkError(f"there is no task {show(kind)}{did_you_mean(kind, KINDS)}; known: {', '.join(KINDS)}")


def require_method(method: str | None) -> None:
    """Raise RecipeError for a method that is none; a user's own, "package.module:Class", is found out later."""
    if method is not None and method not in METHODS and ":" not in method:
        own = "or your own as 'package.module:Class'"
        raise RecipeError(
            [f"--source {show(method)} is not one of: {', '.join(METHODS)}{did_you_mean(method, METHODS)}; {own}"]
        )


def require_device(name: str | None) -> None:
    """Raise DatafreeError for a name that no device has; whether the machine has it is found out later."""
    if name is not None and (not re.fullmatch(r"[a-z_][a-z_0-9]*(:\d{1,3})?", name) or name.startswith("gpu")):
        raise DatafreeError(f"--device {show(name)} is no device; give auto, cpu, cuda, cuda:1 or another of torch's")


def require_there(option: str, path: Path | None, kind: Literal["file", "folder", "either"]) -> None:
    """Raise DatafreeError where there is no such thing at the path that `option` says."""
    if path is None:
        return
    try:
        place = paths.expand(str(path))
        found = {"file": place.is_file, "folder": place.is_dir, "either": place.exists}[kind]()
        there = place.exists()
    except (ValueError, OSError) as error:
        raise DatafreeError(f"{option} {show(str(path))}: {error}") from error
    if not found:
        raise DatafreeError(
            f"{option} {show(str(path))}: {f'not a {kind}' if there else 'nothing is there'} (looked for {place})"
        )


def require_one_file(teacher: str, weights: Path | None) -> None:
    """Raise WeightsError for weights beside a teacher that is a weights file itself."""
    if weights is not None:
        raise WeightsError(f"{teacher} is a weights file, and so is --weights {weights}: give one of them")


def parse_link(text: str) -> float:
    """Bytes a second of a text such as 10GB/s, 800MB/s or 25Gbit/s. Raises RecipeError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([MGT])(B|bit)/s", text.strip(), re.ASCII)
    if match is None or not float(match[1]):
        raise RecipeError([f"--link {show(text)} is no speed; write it as 10GB/s, 800MB/s or 25Gbit/s"])
    return float(match[1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[match[2]] / (8 if match[3] == "bit" else 1)
