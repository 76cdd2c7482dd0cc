"""Pictures for people: grids of images with the teacher's answer beside them.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor


def class_colours(count: int) -> Tensor:
    """(C, 3) colours in [0, 1], well apart for neighbouring ids; the first is dark grey."""
    colours = [(0.25, 0.25, 0.25)]
    for index in range(count - 1):
        hue = (index * 0.6180339887) % 1.0  # the golden ratio keeps neighbours apart, however many there are
        colours.append(colorsys.hsv_to_rgb(hue, (0.85, 0.55)[index % 2], (0.95, 0.75, 0.55)[index % 3]))
    return torch.tensor(colours[:count])


def grid(rows: list[Tensor], columns: int = 8, gap: int = 2) -> Tensor:
    """Lay out stacks of pictures as one picture (3, H', W'): column i shows picture i of each stack, top to bottom.

    `rows`: stacks (B, 3, H, W) in [0, 1], all the same shape. More than `columns` pictures wrap into further bands.
    """
    count, _, height, width = rows[0].shape
    columns = min(columns, count)
    bands = -(-count // columns)
    cell_h, cell_w = height + gap, width + gap
    band_h = cell_h * len(rows) + gap
    canvas = torch.ones(3, bands * band_h + gap, columns * cell_w + gap)
    for index in range(count):
        band, column = divmod(index, columns)
        for row, stack in enumerate(rows):
            top = gap + band * band_h + row * cell_h
            left = gap + column * cell_w
            canvas[:, top : top + height, left : left + width] = stack[index].detach().float().cpu().clamp(0, 1)
    return canvas
