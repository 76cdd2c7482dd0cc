"""Scores as a table for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from datafree.cli.lines import result, result_block
from datafree.text import percent, readable, table

if TYPE_CHECKING:
    from datafree.tasks.base import Scores


def print_outcome(scores: dict[str, Scores], notes: list[str]) -> None:
    """Scores, where there are any, and what is to be noted."""
    if scores:
        result_block(score_table(scores))
    for note in notes:
        result(f"note: {note}")


def score_table(scores: dict[str, Scores]) -> str:
    """Scores in percent, a row for each network, and the student's share of the teacher's."""
    names = list(next(iter(scores.values())).values)
    rows = [["", *map(readable, names)]]
    rows += [[who, *(percent(score.values[name]) for name in names)] for who, score in scores.items()]
    if "teacher" in scores and "student" in scores:
        from datafree.tasks.base import relative  # with torch, which not every verb waits for

        shares = relative(scores)
        rows.append(["student / teacher", *(percent(shares.get(name, math.nan)) for name in names)])
    return table(rows)
