"""Images to quantise an export with, and to compare its files with torch on: a run's own, or a folder's.

N images, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datafree.data import images as image_files
from datafree.data.unlabelled import read_fitted, unread
from datafree.deploy.model_card import public
from datafree.engine.artifacts import CALIBRATION
from datafree.errors import DataError, DatafreeError
from datafree.networks.checkpoints.weights import read_tensors
from datafree.networks.onnx import noise
from datafree.storage import made_set
from datafree.tasks.base import Task

CALIBRATED_ON = 256  # images at most
COMPARED_ON = 16  # images that a float file is compared on


def calibration_images(run: Path, folder: Path | None, task: Task, notes: list[str]) -> tuple[Tensor, str]:
    """Images (N, 3, H, W) uint8 to calibrate with, two or more, and what they are; `notes` is told of those left out.

    Raises DataError.
    """
    if folder is not None:
        folder = made_set.data_of(folder)
        inner = (folder / "data" / "images", folder / "images")  # of sets with masks or boxes beside the images
        files = image_files.list_images(next((place for place in inner if place.is_dir()), folder))
        chosen = files[:: -(-len(files) // CALIBRATED_ON)]  # spread over the folder
        skipped: list[str] = []
        read = read_fitted(chosen, task.image_size, skipped, folder)
        found = torch.stack([(pixels * 255).round().byte() for pixels in read])
        notes += [f"INT8: {unread(skipped)}"] if skipped else []
        origin = f"from the folder {public(str(folder.absolute()))}"
    else:
        file = run / CALIBRATION
        if not file.is_file():
            raise DataError(f"{run} holds no images of its source ({CALIBRATION}); give a folder of some with --images")
        found = read_tensors(file).get("images", torch.empty(0))
        origin = "of the run's source"
        if found.dtype != torch.uint8 or found.ndim != 4 or tuple(found.shape[1:]) != (3, *task.image_size):
            raise DataError(
                f"{file} does not hold 8-bit images of the task's size; give a folder of some with --images"
            )
    if len(found) < 2:
        raise DataError("one image is too few to calibrate with; give a folder of some hundred with --images")
    return found[:CALIBRATED_ON], origin


def apart(found: Tensor) -> tuple[Tensor, Tensor]:
    """Of two images or more those to calibrate with, and every fourth to compare on: of all classes, as folders come in
    order.
    """
    held = torch.arange(len(found)) % 4 == min(3, len(found) - 1)
    return found[~held], found[held]


def images_to_compare(run: Path, task: Task) -> tuple[Tensor, str]:
    """Images (N, 3, H, W) uint8 and what they are: some of the run's source, else noise."""
    try:
        found, origin = calibration_images(run, None, task, [])
    except DatafreeError:
        return (noise(COMPARED_ON, task.image_size) * 255).byte(), "of noise"
    return found[-COMPARED_ON:], origin
