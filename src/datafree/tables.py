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
        from datafree.job import relative

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
