"""Visualisation: targets drawn into images, grids of images with the teacher's answer beside them.

B images, C classes, M rows of targets, H x W pixels.
"""

from __future__ import annotations

import colorsys

import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor

from datafree.data.images import to_image, to_tensor
from datafree.ops.boxes import present

_Colour = tuple[int, int, int]
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def class_colours(count: int) -> Tensor:
    """(C, 3) colours in [0, 1], well apart for neighbouring ids; the first is dark grey."""
    colours = [(0.25, 0.25, 0.25)]
    for index in range(count - 1):
        hue = (index * 0.6180339887) % 1.0  # the golden ratio keeps neighbours apart, however many there are
        colours.append(colorsys.hsv_to_rgb(hue, (0.85, 0.55)[index % 2], (0.95, 0.75, 0.55)[index % 3]))
    return torch.tensor(colours[:count])


def outline_colours(count: int) -> Tensor:
    """(C, 3) as `class_colours`, the first nearly white: an outline of dark grey would be lost in most images."""
    colours = class_colours(count)
    colours[:1] = 0.9
    return colours


def draw_boxes(images: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """(B, 3, H, W) in [0, 1], 8-bit values: images with the boxes of targets (B, M, 5) as outlines.

    A box has the colour of its class (class 0: nearly white) with a thin edge of black or white, and its class id in a
    corner where it is large enough to spare the room. Small boxes lie over large ones. Empty and crowd rows are not
    drawn.
    """
    colours = outline_colours(num_classes)
    thick, font = _pen(images)
    drawn = []
    for image, rows, wanted in zip(images, targets.detach().float().cpu(), present(targets).cpu(), strict=True):
        picture = to_image(image)
        draw = ImageDraw.Draw(picture)
        boxes = rows[wanted]
        area = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
        for label, *edges in boxes[area.argsort(descending=True)].tolist():
            left, top, right, bottom = map(round, edges)
            right, bottom = max(left, right - 1), max(top, bottom - 1)  # the last pixels inside
            colour, contrast = _inks(colours[int(label)])
            draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=contrast)
            draw.rectangle((left, top, right, bottom), outline=colour, width=thick)
            if thick > 1 and min(right - left, bottom - top) > 6 * thick:
                draw.rectangle((left + thick, top + thick, right - thick, bottom - thick), outline=contrast)
            _, _, width, height = map(round, font.getbbox(str(int(label)), anchor="lt"))
            if right - left > 3 * width and bottom - top > 3 * height:
                _badge(draw, left, top, str(int(label)), colour, contrast, font, thick)
        drawn.append(to_tensor(picture))
    return torch.stack(drawn).to(images.device)


def draw_masks(masks: Tensor, num_classes: int) -> Tensor:
    """(B, 3, H, W) in [0, 1]: masks (B, H, W) in their classes' colours, black where they are of no class."""
    known = (masks >= 0) & (masks < num_classes)
    colours = class_colours(num_classes).to(masks.device)[torch.where(known, masks, 0)]  # (B, H, W, 3)
    return (colours * known[..., None]).movedim(-1, 1)


def draw_labels(images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(B, 3, H, W) in [0, 1]: images with their labels (B,) as ids in a corner."""
    colours, (thick, font), drawn = class_colours(num_classes), _pen(images), []
    for image, label in zip(images, labels.tolist(), strict=True):
        picture = to_image(image)
        _badge(ImageDraw.Draw(picture), 0, 0, str(label), *_inks(colours[label]), font, thick)
        drawn.append(to_tensor(picture))
    return torch.stack(drawn).to(images.device)


def _pen(images: Tensor) -> tuple[int, _Font]:
    """Pixels of a line in such images, and a font."""
    thick = max(1, round(min(images.shape[2:]) / 160))
    return thick, ImageFont.load_default(max(8, 7 * thick))


def _inks(colour: Tensor) -> tuple[_Colour, str]:
    """A colour in [0, 1] as Pillow has it, and what is readable on it."""
    red, green, blue = (round(255 * value) for value in colour.tolist())
    return (red, green, blue), "black" if 2 * red + 5 * green + blue > 700 else "white"


def _badge(
    draw: ImageDraw.ImageDraw, left: int, top: int, text: str, colour: _Colour, contrast: str, font: _Font, thick: int
) -> None:
    """A text on a patch of colour."""
    _, _, width, height = map(round, font.getbbox(text, anchor="lt"))
    draw.rectangle((left, top, left + width + 2 * thick, top + height + 2 * thick), fill=colour)
    draw.text((left + thick, top + thick), text, fill=contrast, font=font, anchor="lt")


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
