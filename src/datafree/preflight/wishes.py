"""What a user says of a teacher and of the student wanted from it, in one line: options of `distill` and `init`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from datafree.config.overrides import student_overrides
from datafree.errors import RecipeError
from datafree.preflight.option_values import (
    StatedImages,
    argument,
    pixels,
    require_classes,
    require_device,
    require_kind,
    require_method,
    require_seed,
    require_there,
    require_time,
    three,
)

TIME = "30m"  # of a run whose time nobody says
NEEDS_PHOTOS = {"folder": ("path",), "degan": ("proxy", "path")}  # methods that cannot do without: where these stand


@final
@dataclass(frozen=True, kw_only=True)
class Wishes:
    """Options as they were written; None where nothing was said. Raises DatafreeError for values that are none."""

    weights: Path | None = None
    args: tuple[str, ...] = ()  # "key=value" of the teacher's constructor
    size: str | None = None  # "224x224", height x width
    task: str | None = None  # a kind
    classes: int | None = None
    mean: str | None = None  # "R,G,B" of images in [0, 1]
    std: str | None = None
    channels: int | None = None
    channel_order: str | None = None
    student: str | None = None
    compress: str | None = None
    source: str | None = None  # a method
    photos: Path | None = None
    data: Path | None = None
    time: str | None = None
    device: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for text in self.args:
            argument(text)
        if self.size is not None:
            pixels(self.size)
        self.images()
        require_classes(self.classes)
        require_time(self.time)
        require_kind(self.task)
        require_method(self.source)
        require_device(self.device)
        require_seed(self.seed)
        student_overrides(self.student, self.compress)
        require_there("--weights", self.weights, "file")
        require_there("--photos", self.photos, "folder")
        require_there("--data", self.data, "either")

    def images(self) -> StatedImages:
        """What was said of the teacher's images."""
        return StatedImages.parse(self.channels, self.mean, self.std, self.channel_order)

    def in_training(self) -> dict[str, Any]:
        """The options of a recipe's section `training` among them, and `time` where it was said."""
        said = {"time": self.time, "device": self.device, "seed": self.seed}
        return {key: value for key, value in said.items() if value is not None}


def source_section(method: str, photos: Path | None) -> dict[str, Any]:
    """The recipe's section `source` for a method and a folder of photos. Raises RecipeError where they do not fit."""
    section: dict[str, Any] = {"method": method}
    if photos is None:
        if method in NEEDS_PHOTOS:
            raise RecipeError([f"--source {method} needs photos: give --photos DIR, or --source auto"])
        return section
    folder = str(photos)
    if method == "auto":
        return {**section, "photos": folder}
    if method not in NEEDS_PHOTOS:
        raise RecipeError([f"--source {method} takes no photos: leave --photos out, or give --source auto or folder"])
    if method == "degan":
        return {**section, "proxy": {"path": folder, "crop": "random", "flip": True}}
    return {**section, "path": folder, "crop": "random", "flip": True}


def recipe_overrides(wishes: Wishes, size: tuple[int, int] | None) -> list[str]:
    """What the options change in a recipe that was written: `key.sub=value`. `size`: the images' in pixels.

    Raises RecipeError.
    """
    teacher = {
        "weights": None if wishes.weights is None else str(wishes.weights),
        "mean": three("--mean", wishes.mean),
        "std": three("--std", wishes.std),
        "channels": wishes.channels,
        "channel_order": wishes.channel_order,
    }
    changes = [
        *(("teacher." + key, value) for key, value in teacher.items()),
        ("task.kind", wishes.task),
        ("task.num_classes", wishes.classes),
        ("task.image_size", None if size is None else list(size)),
        ("data", None if wishes.data is None else str(wishes.data)),
        *(("training." + key, value) for key, value in wishes.in_training().items()),
    ]
    if wishes.source is not None or wishes.photos is not None:
        changes.append(("source", source_section(wishes.source or "auto", wishes.photos)))
    return [
        *(f"teacher.args.{text}" for text in wishes.args),
        *(f"{key}={json.dumps(value)}" for key, value in changes if value is not None),
        *student_overrides(wishes.student, wishes.compress),
    ]
