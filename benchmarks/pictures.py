"""Charts of measured figures as files: SVG drawings of docs/pictures, with their own colours and the lines' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from datafree.report.charts import DASHES, HEIGHT, WIDTH, drawing
from datafree.report.run_reader import Series

COLOURS = ("#0b5cad", "#b3541e", "#2c7a3f", "#8a2f7d", "#8f6b00", "#0a7f86", "#a3243b", "#555555")
STYLE = "\n".join(
    [
        "svg { background: #fff; font-family: sans-serif }",
        "text { fill: #444; font-size: 10px } .tick { text-anchor: end }",
        ".rule { stroke: #ddd } .line { fill: none; stroke-width: 1.5 }",
        *(f".line.c{i} {{ stroke: {colour} }} .dot.c{i} {{ fill: {colour} }}" for i, colour in enumerate(COLOURS)),
    ]
)
ROW, NAMED_IN_A_ROW = 14, 3  # height of a row of names, and names in it


def write_chart(file: Path, title: str, lines: Sequence[Series], *, unit: str, x_unit: str) -> None:
    """Write a drawing whose axis of values begins at 0; more than one line are named below it."""
    drawn = str(drawing(title, lines, unit, x_unit, from_zero=True))
    height = HEIGHT
    if len(lines) > 1:
        height += ROW * -(-len(lines) // NAMED_IN_A_ROW)
        names = Markup("").join(_name(index, line.name) for index, line in enumerate(lines))
        drawn = drawn.replace("</svg>", f"{names}</svg>").replace(f"{WIDTH} {HEIGHT}", f"{WIDTH} {height}", 1)
    framed = drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    file.write_text(framed.replace("<title>", f"<style>\n{STYLE}\n</style><title>", 1) + "\n", encoding="utf-8")


def _name(index: int, name: str) -> Markup:
    """A line's name behind a piece of it."""
    row, column = divmod(index, NAMED_IN_A_ROW)
    x, y = 10 + column * (WIDTH - 20) // NAMED_IN_A_ROW, HEIGHT + 6 + row * ROW
    return Markup(
        '<polyline class="line c{}" stroke-dasharray="{}" points="{},{} {},{}"/><text x="{}" y="{}">{}</text>'
    ).format(index, DASHES[index] or "none", x, y - 3, x + 26, y - 3, x + 32, y, name)
