"""Figures as people read them in a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datafree.tasks.base import Scores

_KNOWN = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "miou": "mIoU", "top1": "top-1", "top5": "top-5"}


def score_table(scores: dict[str, Scores]) -> str:
    """Scores in percent, a row for each network, and the student's share of the teacher's."""
    names = list(next(iter(scores.values())).values)
    rows = [["", *map(readable, names)]]
    rows += [[who, *(percent(score.values[name]) for name in names)] for who, score in scores.items()]
    if "teacher" in scores and "student" in scores:
        from datafree.run import relative

        shares = relative(scores)
        rows.append(["student / teacher", *(percent(shares.get(name, math.nan)) for name in names)])
    return table(rows)


def table(rows: list[list[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def readable(name: str) -> str:
    """A figure's name as people write it."""
    return _KNOWN.get(name, name.replace("_", " "))


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal; "-" where it is not a number."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def size(count: float) -> str:
    """Bytes with a unit, two figures or more."""
    number, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.1f} {units[0]}" if number < 10 and units[0] != "B" else f"{number:.0f} {units[0]}"


def time(seconds: float) -> str:
    """Seconds as people say them, two figures or so."""
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.0f} days"
