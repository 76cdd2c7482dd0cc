"""Calibration images as files: PNG, arrays, lists and the readers of other tools.

N images, B of a batch, H x W pixels.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datafree.data.images import to_image
from datafree.deploy.calibration import readers
from datafree.deploy.written_names import FOLDERS
from datafree.networks.normalized import Normalized

IN_A_FILE = 32  # images of inputs/


@torch.no_grad()
def write_images(folder: Path, network: Normalized, images: Tensor, class_names: list[str]) -> None:
    """Write `images` (N, 3, H, W) uint8 in every form, those of inputs/ as `network` prepares them. Raises OSError."""
    for name in FOLDERS:
        (folder / name).mkdir()
    names = [f"images/{index:05}.png" for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        to_image(image.float() / 255).save(folder / name)
    np.save(folder / "images.npy", images.permute(0, 2, 3, 1).contiguous().numpy())
    place = network.mean.device
    for index, part in enumerate(torch.split(images, IN_A_FILE)):
        taken = network.prepared(part.to(place).float() / 255)
        np.save(folder / "inputs" / f"{index:04}.npy", taken.cpu().contiguous().numpy())
    (folder / "images.txt").write_text(readers.list_text(names), "utf-8")
    (folder / "data.yaml").write_text(readers.data_yaml(class_names), "utf-8")
    for name, text in readers.READERS.items():
        (folder / "readers" / name).write_text(text, "utf-8")


def bytes_needed(network: Normalized, size: tuple[int, int], count: int) -> int:
    """Of `count` images of `size` (height, width) on the disk; noise, which no PNG makes smaller, at most."""
    taken = network.channels * math.prod(network.input_size or size) * 4
    return count * (2 * 3 * math.prod(size) + taken) + 2**20
