"""The page of a calibration folder: whether the images are any good, and what INT8 by them does.

N images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from torch import Tensor

from datafree.data.images import to_image
from datafree.data.visualize import grid
from datafree.report.image_grid import inline
from datafree.report.page import fill
from datafree.text import readable, size

SHOWN = 24  # images
COLUMNS = 12
WORST = 12  # layers in the table
NAMES = {"made": "these images", "noise": "noise", "real": "real images"}
ON = {"made": "held-out images of the source", "real": "real images"}

WIDTH, HEIGHT, LEFT, TOP = 1000, 220, 34, 8  # of the chart of ranges
MOST = 3.0  # half widths of the kept range that it shows
MOST_LAYERS = 80


def calibration_page(content: Mapping[str, Any], images: Tensor) -> str:
    """The page of what calibration.json says (`content`), and of the first of `images` (N, 3, H, W) uint8."""
    picture = to_image(grid([images[:: max(1, len(images) // SHOWN)][:SHOWN].float() / 255], columns=COLUMNS))
    rows: Sequence[Mapping[str, Any]] = content["layers"]
    sets = [name for name in NAMES if any(name in row for row in rows)]
    known = [row for row in rows if "badness" in row.get("made", {})]
    return fill(
        "calibration.html",
        False,
        content=content,
        int8=content["int8"],
        picture=inline(picture, "Calibration images", "some of the images"),
        sets=sets,
        names=NAMES,
        on=ON,
        rows=sorted(known, key=lambda row: -row["made"]["badness"])[:WORST] if known else rows[:WORST],
        statistics=bool(known),
        chart=range_chart(rows, sets),
        readable=readable,
        size=size,
        short=lambda value: f"{value:.3g}",
    )


def range_chart(rows: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> Markup:
    """An <svg>: for each layer a bar from the least to the largest value of each set of images.

    The unit is half of the range that the layer's BatchNorm statistics stand for, 0 its middle; without BatchNorm, the
    range on the images made.
    """
    if not rows:
        return Markup("")
    rows = [rows[index * len(rows) // MOST_LAYERS] for index in range(MOST_LAYERS)] if len(rows) > MOST_LAYERS else rows
    across = (WIDTH - LEFT) / len(rows)
    width = min(6.0, across / (len(sets) + 1))
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT + 2 * TOP, "Range of activations of each layer, on each set of images"
        ),
        Markup('<rect class="warm" x="{}" y="{}" width="{}" height="{}"/>').format(
            LEFT, _y(1), WIDTH - LEFT, round(_y(-1) - _y(1), 1)
        ),
    ]
    for tick in (-2, -1, 0, 1, 2):
        parts.append(
            Markup('<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH, _y(tick), _y(tick))
        )
        parts.append(Markup('<text class="tick" x="{}" y="{}">{}</text>').format(LEFT - 5, _y(tick) + 3.5, tick))
    for index, row in enumerate(rows):
        low, high = row["kept"] or row["made"]["range"]
        middle, half = (low + high) / 2, max((high - low) / 2, 1e-12)
        for place, name in enumerate(sets):
            if name not in row:
                continue
            bottom, top = ((value - middle) / half for value in row[name]["range"])
            left = LEFT + across * (index + 0.5) + width * (place - len(sets) / 2)
            parts.append(
                Markup(
                    '<rect class="c{}" fill="var(--line)" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
                ).format(
                    place,
                    round(left, 1),
                    _y(top),
                    round(width * 0.85, 2),
                    max(0.5, round(_y(bottom) - _y(top), 1)),
                    f"{row['layer']}, {NAMES[name]}: {row[name]['range'][0]:.3g} to {row[name]['range'][1]:.3g}",
                )
            )
    return Markup("").join([*parts, Markup("</svg>")])


def _y(value: float) -> float:
    return round(TOP + (MOST - max(-MOST, min(MOST, value))) / (2 * MOST) * HEIGHT, 1)
