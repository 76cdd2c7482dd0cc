"""Line charts as inline SVG: a title, units at both axes, colours of the page's theme.

Several lines in one chart differ in their dashes as well as in colour, and are named at the chart's foot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from datafree.report.run_reader import Series

WIDTH, HEIGHT = 360, 190  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
MOST_POINTS = 240  # of a line; more are thinned out
DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "1 4", "6 2 1 2 1 2", "3 6")  # of the first eight lines
SHOWN = len(DASHES)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart as a page lays it out."""

    title: str
    unit: str
    drawing: Markup  # an <svg>
    names: list[tuple[str, str]]  # of its lines, and their dashes


def line_chart(title: str, lines: Sequence[Series], *, unit: str) -> Chart:
    """A chart of the first eight `lines` that have points. `unit` is what the values are in; words are escaped."""
    shown = [line for line in lines if line.points][:SHOWN]
    names = [(line.name, DASHES[index] or "none") for index, line in enumerate(shown)]
    return Chart(title=title, unit=unit, drawing=drawing(title, shown, unit), names=names)


def drawing(
    title: str, lines: Sequence[Series], unit: str, x_unit: str = "step of the student", *, from_zero: bool = False
) -> Markup:
    """The <svg> of a chart; nothing where there are no points. `from_zero`: the values' axis begins at 0 at the latest.

    Steps below 0 (the warm-up, in which the student does not learn yet) lie on a shaded ground.
    """
    shown = [Series(name=line.name, points=thinned(line.points)) for line in lines]
    points = [point for line in shown for point in line.points]
    if not points:
        return Markup("")
    low_x, high_x = _range([x for x, _ in points])
    least = min(y for _, y in points)
    ticks = nice_ticks(min(least, 0) if from_zero else least, max(y for _, y in points))
    low_y, high_y = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return round(right, 1), round(TOP + (high_y - y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>').format(
            WIDTH, HEIGHT, _described(title, shown, unit), title
        )
    ]
    if low_x < 0 < high_x:
        zero = place(0, low_y)[0]
        parts.append(
            Markup('<rect class="warm" x="{}" y="{}" width="{}" height="{}"/>').format(
                LEFT, TOP, round(zero - LEFT, 1), HEIGHT - TOP - BOTTOM
            )
        )
        if zero - LEFT > 50:
            parts.append(Markup('<text x="{}" y="{}" class="small">warm-up</text>').format(LEFT + 4, TOP + 10))
    for tick in ticks:
        y = place(low_x, tick)[1]
        parts.append(Markup('<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y))
        parts.append(Markup('<text class="tick" x="{}" y="{}">{}</text>').format(LEFT - 5, y + 3.5, short(tick)))
    for x, anchor in ((low_x, "start"), (high_x, "end")):
        parts.append(
            Markup('<text class="across" text-anchor="{}" x="{}" y="{}">{}</text>').format(
                anchor, place(x, low_y)[0], HEIGHT - BOTTOM + 14, short(x)
            )
        )
    parts.append(
        Markup('<text class="across" text-anchor="middle" x="{}" y="{}">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 28, x_unit
        )
    )
    for index, line in enumerate(shown):
        places = [place(x, y) for x, y in line.points]
        if len(places) == 1:
            parts.append(Markup('<circle class="dot c{}" cx="{}" cy="{}" r="3"/>').format(index, *places[0]))
        path = " ".join(f"{x:g},{y:g}" for x, y in places)
        parts.append(
            Markup('<polyline class="line c{}" stroke-dasharray="{}" points="{}"/>').format(
                index, DASHES[index] or "none", path
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points: the lowest and the highest of each stretch, so that no peak is lost; both ends."""
    if len(points) <= most:
        return list(points)
    bounds = [round(index * len(points) / (most // 2)) for index in range(most // 2 + 1)]
    kept = {0, len(points) - 1}
    for begin, end in pairwise(bounds):
        stretch = range(begin, end)
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):  # a level line lies in the middle
        margin = max(abs(high) * 0.1, 1e-6)
        low, high = low - margin, high + margin
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """A number in few letters: 0.25, 1.5k, 3e-05."""
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.4g}{name}"
    return f"{value:.4g}" if size >= 1e-3 or not size else f"{value:.1e}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def _described(title: str, lines: Sequence[Series], unit: str) -> str:
    """What the chart shows, for those who do not see it."""
    ends = [f"{line.name}: from {short(line.points[0][1])} to {short(line.points[-1][1])}" for line in lines]
    return f"{title}, in {unit}; {'; '.join(ends)}"
